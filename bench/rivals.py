"""The optimizers of the benchmark: FusedRAdam and everything that a user could choose instead."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import radam_fused
from radam_fused import FusedRAdam

from . import variant
from .cases import Shapes
from .timing import Step

OURS = "FusedRAdam"
ADAMW = "FusedAdamW"
FLAT = f"{OURS} flatten=True"
TRITON = f"{OURS} by Triton"
CAPTURABLE = f"{OURS} capturable"
REPLAYED = f"{OURS} in a CUDA graph"
REPLAYED_TRITON = f"{OURS} by Triton in a CUDA graph"
ROUGHLY = f"{OURS} contracted, rough division"
FOREACH = "torch RAdam foreach"
COMPILED = "torch.compile of RAdam"
FUSED_ADAMW = "torch AdamW fused"


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
    "torch RAdam": _torch(torch.optim.RAdam, foreach=False),
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


class SharedRivals:
    """Optimizers that share parameters, gradients and moments, on one device.

    The place of a tensor in memory changes a kernel's time by 2 to 4 %, so all optimizers work on
    the same tensors. That is also what lets 1B elements fit on a GPU.

    Args:
        shapes: Shapes of the parameters.
        device: Their device.
        dtype: Their dtype.
    """

    def __init__(
        self, shapes: Shapes, device: str = "cuda", dtype: torch.dtype = torch.float32
    ) -> None:
        def normal(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        self._device = device
        self.params = [torch.nn.Parameter(normal(shape)) for shape in shapes]
        for param in self.params:
            param.grad = normal(param.shape)
        self._moments: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}

    def moments(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """The moments of a dtype, one pair per parameter."""
        if dtype not in self._moments:
            self._moments[dtype] = [
                (torch.zeros_like(p, dtype=dtype), torch.ones_like(p, dtype=dtype))
                for p in self.params
            ]
        return self._moments[dtype]

    def _share(
        self, optimizer: torch.optim.Optimizer, moment: torch.dtype, counter: str = "cpu"
    ) -> Step:
        for param, (exp_avg, exp_avg_sq) in zip(self.params, self.moments(moment), strict=True):
            step = torch.tensor(0.0, device=counter)
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            optimizer.state[param] = state
        return optimizer.step

    def _ours(self, backend: str, **options: Any) -> Step:
        counter = self._device if options.get("capturable") else "cpu"
        optimizer = FusedRAdam(self.params, backend=backend, **options)
        return self._share(optimizer, torch.float32, counter)

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
        variant.take_first_step(step)
        return step

    def _torch(
        self, cls: type[torch.optim.Optimizer], counter: str = "cpu", **options: Any
    ) -> Step:
        return self._share(cls(self.params, **options), self.params[0].dtype, counter)

    def _apex(self) -> Step:
        from apex.optimizers import FusedAdam

        return FusedAdam(self.params).step  # type: ignore[no-any-return]

    def step(self, name: str) -> Step:
        """A step of one optimizer, by its name."""
        optim, device = torch.optim, self._device
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
            ADAMW: lambda: self._share(
                radam_fused.FusedAdamW(self.params, backend="cuda"), torch.float32
            ),
            FUSED_ADAMW: lambda: self._torch(optim.AdamW, device, fused=True),
            "apex FusedAdam": self._apex,
        }
        return makers[name]()

    def steps(self, names: Sequence[str]) -> dict[str, Step]:
        """A step of each optimizer that can run here; a warning names each that cannot."""
        found = {}
        for name in names:
            try:
                found[name] = self.step(name)
            except (ImportError, RuntimeError) as error:
                warnings.warn(f"{name} is left out: {error}", stacklevel=2)
        return found


def bytes_per_element(name: str, dtype: torch.dtype) -> int:
    """Bytes that a step must move per element: parameter and moments twice, the gradient once."""
    ours = name.startswith((OURS, ADAMW))
    moment = torch.float32.itemsize if ours else dtype.itemsize
    return 3 * dtype.itemsize + 4 * moment
