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
from .format_bytes import Format

ADAMW = "FusedAdamW"
FLAT = f"{OURS} flatten=True"
TRITON = f"{OURS} by Triton"
CAPTURABLE = f"{OURS} capturable"
REPLAYED = f"{OURS} in a CUDA graph"
REPLAYED_TRITON = f"{OURS} by Triton in a CUDA graph"
ROUGHLY = f"{OURS} contracted, rough division"
FOREACH = "torch RAdam foreach"
CLIPPED = f"{OURS} max_grad_norm"
CLIPPED_TRITON = f"{TRITON} max_grad_norm"
CLIP_ADAMW = f"clip_grad_norm_, {FUSED_ADAMW}"
ONE_LAUNCH = f"norm in one launch, foreach scale, {FUSED_ADAMW}"
SCALED = f"{OURS} fused=True max_grad_norm, GradScaler"
SCALED_ADAMW = f"unscale_, clip_grad_norm_, {FUSED_ADAMW}, GradScaler"
COMPILED = "torch.compile of RAdam"
# The stored formats, by the options that ask for them.
NARROW_MOMENTS = f"{OURS} moments=bfloat16"
SPLIT = f"{OURS} master_weights=split"
SPLIT_MOMENTS = f"{SPLIT} moments=bfloat16"
SPLIT_REPLAYED = f"{SPLIT} in a CUDA graph"
SPLIT_TRITON = f"{TRITON} master_weights=split"
STORED: dict[str, dict[str, str]] = {
    NARROW_MOMENTS: {"moments": "bfloat16"},
    SPLIT: {"master_weights": "split"},
    SPLIT_MOMENTS: {"master_weights": "split", "moments": "bfloat16"},
    SPLIT_REPLAYED: {"master_weights": "split"},
    SPLIT_TRITON: {"master_weights": "split"},
}


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
        on_device = options.get("capturable") or options.get("fused")
        counter = self.device if on_device else "cpu"
        optimizer = FusedRAdam(self.params, backend=backend, **options)
        moment = torch.bfloat16 if "moments" in options else torch.float32
        return self.share(optimizer, moment, counter)

    def _flat(self) -> Step:
        # It moves its parameters, so it has its own.
        params = [torch.nn.Parameter(p.detach().clone()) for p in self.params]
        for param, shared in zip(params, self.params, strict=True):
            param.grad = shared.grad
        return FusedRAdam(params, backend="cuda", flatten=True).step

    def _replayed(self, backend: str, **options: Any) -> Step:
        step = self._ours(backend, capturable=True, **options)
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

    def _clip_torch(self) -> Step:
        step = self._torch(torch.optim.AdamW, self.device, fused=True)

        def clip_and_step() -> None:
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            step()

        return clip_and_step

    def _one_launch(self) -> Step:
        from .one_launch import Clipper

        clipper = Clipper([p.grad for p in self.params if p.grad is not None])
        step = self._torch(torch.optim.AdamW, self.device, fused=True)

        def clip_and_step() -> None:
            clipper.clip(1.0)
            step()

        return clip_and_step

    def _scaled(self, clips_itself: bool) -> Step:
        """A step by torch.amp.GradScaler, whose scale changes no value of the gradients."""
        options = {"growth_interval": 10**9, "init_scale": 1.0}
        scaler = torch.amp.GradScaler(self.device.partition(":")[0], **options)
        scaler.scale(torch.ones((), device=self.device))
        step = (
            self._ours("cuda", fused=True, max_grad_norm=1.0)
            if clips_itself
            else self._torch(torch.optim.AdamW, self.device, fused=True)
        )
        optimizer = step.__self__  # type: ignore[attr-defined]

        def scale_and_step() -> None:
            if not clips_itself:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            scaler.step(optimizer)
            scaler.update()

        return scale_and_step

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
            CLIPPED: lambda: self._ours("cuda", max_grad_norm=1.0),
            CLIPPED_TRITON: lambda: self._ours("triton", max_grad_norm=1.0),
            CLIP_ADAMW: self._clip_torch,
            ONE_LAUNCH: self._one_launch,
            SCALED: lambda: self._scaled(True),
            SCALED_ADAMW: lambda: self._scaled(False),
            SPLIT_REPLAYED: lambda: self._replayed("cuda", **STORED[SPLIT_REPLAYED]),
            SPLIT_TRITON: lambda: self._ours("triton", **STORED[SPLIT_TRITON]),
        }
        for stored in (NARROW_MOMENTS, SPLIT, SPLIT_MOMENTS):
            makers[stored] = partial(self._ours, "cuda", **STORED[stored])
        return makers[name]()

    def steps(self, names: Sequence[str]) -> dict[str, Step]:
        """A step of each optimizer that can run here."""
        return available({name: partial(self.step, name) for name in names})


def bytes_per_element(name: str, dtype: torch.dtype) -> float:
    """Bytes that a step must move per element: parameter and moments twice, the gradient once."""
    if name in STORED:
        return Format(dtype, STORED[name]).bytes().moved()
    ours = name.startswith((OURS, ADAMW))
    moment = torch.float32.itemsize if ours else dtype.itemsize
    # A norm reads the gradients once more; to scale them reads and writes them.
    more = 1 if name in (CLIPPED, CLIPPED_TRITON, SCALED) else 3
    clips = "clip_grad_norm_" in name or "max_grad_norm" in name or name == ONE_LAUNCH
    return (3 + more * clips) * dtype.itemsize + 4 * moment
