"""The optimizers of the benchmark: FusedRAdam and everything that a user could choose instead."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch

import radam_fused
from radam_fused import FusedRAdam
from radam_fused.benchmark.rivals import FUSED_ADAMW, OURS, RADAM, SharedTensors
from radam_fused.benchmark.timing import Step

from . import variant
from .cases import Shapes

ADAMW = "FusedAdamW"
FLAT = f"{OURS} flatten=True"
TRITON = f"{OURS} by Triton"
CAPTURABLE = f"{OURS} capturable"
REPLAYED = f"{OURS} in a CUDA graph"
REPLAYED_TRITON = f"{OURS} by Triton in a CUDA graph"
ROUGHLY = f"{OURS} contracted, rough division"
FOREACH = "torch RAdam foreach"
COMPILED = "torch.compile of RAdam"


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    """New float32 parameters with gradients, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def _compiled(shapes: Shapes) -> Step:
    optimizer = torch.optim.RAdam(parameters(shapes))
    return torch.compile(optimizer.step)  # type: ignore[no-any-return]


def _optimi(shapes: Shapes) -> Step:
    import optimi

    return optimi.RAdam(parameters(shapes), lr=1e-3).step  # type: ignore[no-any-return]


def _deepspeed(shapes: Shapes) -> Step:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters(shapes)).step  # type: ignore[no-any-return]


def _torch(cls: type[torch.optim.Optimizer], **options: object) -> Callable[[Shapes], Step]:
    return lambda shapes: cls(parameters(shapes), **options).step  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _our_parameters(shapes: tuple[tuple[int, ...], ...]) -> list[torch.nn.Parameter]:
    return parameters(shapes)


def _ours(name: str) -> Callable[[Shapes], Step]:
    def make(shapes: Shapes) -> Step:
        # Our optimizers share parameters: the largest case would not fit into memory otherwise.
        params = _our_parameters(tuple(map(tuple, shapes)))
        cls = getattr(radam_fused, name)  # an earlier commit can lack it
        return cls(params, backend="cpu").step  # type: ignore[no-any-return]

    return make


RIVALS: dict[str, Callable[[Shapes], Step]] = {
    OURS: _ours(OURS),
    ADAMW: _ours(ADAMW),
    RADAM: _torch(torch.optim.RAdam, foreach=False),
    FOREACH: _torch(torch.optim.RAdam, foreach=True),
    COMPILED: _compiled,
    "torch Adam": _torch(torch.optim.Adam),
    FUSED_ADAMW: _torch(torch.optim.AdamW, fused=True),
}
if find_spec("optimi"):
    RIVALS["optimi RAdam"] = _optimi
if find_spec("deepspeed"):
    RIVALS["DeepSpeedCPUAdam"] = _deepspeed


def rivals_of(shapes: Shapes) -> dict[str, Callable[[Shapes], Step]]:
    """The optimizers of a case. torch.compile takes many minutes for a thousand tensors."""
    skipped = {COMPILED} if len(shapes) > 500 else set()
    return {name: make for name, make in RIVALS.items() if name not in skipped}


def available(makers: Mapping[str, Callable[[], Step]]) -> dict[str, Step]:
    """A step of each maker that can make one here; a warning names each that cannot."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ImportError, RuntimeError) as error:
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
    return found


class SharedRivals(SharedTensors):
    """Optimizers of the benchmark on a GPU, on shared tensors."""

    def _ours(self, backend: str, **options: Any) -> Step:
        counter = self.device if options.get("capturable") else "cpu"
        optimizer = FusedRAdam(self.params, backend=backend, **options)
        return self.share(optimizer, torch.float32, counter)

    def _flat(self) -> Step:
        # It moves its parameters, so it has its own.
        params = [torch.nn.Parameter(p.detach().clone()) for p in self.params]
        for param, shared in zip(params, self.params, strict=True):
            param.grad = shared.grad
        return FusedRAdam(params, backend="cuda", flatten=True).step

    def _replayed(self, backend: str) -> Step:
        step = self._ours(backend, capturable=True)
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def replay() -> Step:
            graph.replay()
            return step  # keeps the memory that the graph uses

        return replay

    def _roughly(self) -> Step:
        step = self._ours("cuda")
        variant.take_first_step(step, variant.ROUGHLY)
        return step

    def _torch(
        self, cls: type[torch.optim.Optimizer], counter: str = "cpu", **options: Any
    ) -> Step:
        return self.share(cls(self.params, **options), self.params[0].dtype, counter)

    def _apex(self) -> Step:
        from apex.optimizers import FusedAdam

        return FusedAdam(self.params).step  # type: ignore[no-any-return]

    def step(self, name: str) -> Step:
        """A step of one optimizer, by its name."""
        optim, device = torch.optim, self.device
        makers: dict[str, Callable[[], Step]] = {
            OURS: lambda: self._ours("cuda"),
            TRITON: lambda: self._ours("triton"),
            CAPTURABLE: lambda: self._ours("cuda", capturable=True),
            REPLAYED: lambda: self._replayed("cuda"),
            REPLAYED_TRITON: lambda: self._replayed("triton"),
            FLAT: self._flat,
            ROUGHLY: self._roughly,
            FOREACH: lambda: self._torch(optim.RAdam, foreach=True),
            COMPILED: lambda: torch.compile(self._torch(optim.RAdam, foreach=True)),
            "torch RAdam capturable": lambda: self._torch(optim.RAdam, device, capturable=True),
            "torch Adam": lambda: self._torch(optim.Adam, foreach=True),
            ADAMW: lambda: self.share(
                radam_fused.FusedAdamW(self.params, backend="cuda"), torch.float32
            ),
            FUSED_ADAMW: lambda: self._torch(optim.AdamW, device, fused=True),
            "apex FusedAdam": self._apex,
        }
        return makers[name]()

    def steps(self, names: Sequence[str]) -> dict[str, Step]:
        """A step of each optimizer that can run here."""
        return available({name: partial(self.step, name) for name in names})


def bytes_per_element(name: str, dtype: torch.dtype) -> int:
    """Bytes that a step must move per element: parameter and moments twice, the gradient once."""
    ours = name.startswith((OURS, ADAMW))
    moment = torch.float32.itemsize if ours else dtype.itemsize
    return 3 * dtype.itemsize + 4 * moment
