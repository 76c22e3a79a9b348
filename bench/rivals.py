"""Everything that a user might pick instead."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from radam_fused import FusedRAdam

from .cases import Shapes

Step = Callable[[], object]


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
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


OURS = "FusedRAdam"

RIVALS: dict[str, Callable[[Shapes], Step]] = {
    OURS: _torch(FusedRAdam, backend="cpu"),
    "torch RAdam": _torch(torch.optim.RAdam, foreach=False),
    "torch RAdam foreach": _torch(torch.optim.RAdam, foreach=True),
    "torch.compile of RAdam": _compiled,
    "torch Adam": _torch(torch.optim.Adam),
    "torch AdamW fused": _torch(torch.optim.AdamW, fused=True),
}
if find_spec("optimi"):
    RIVALS["optimi RAdam"] = _optimi
if find_spec("deepspeed"):
    RIVALS["DeepSpeedCPUAdam"] = _deepspeed


def rivals_of(shapes: Shapes) -> dict[str, Callable[[Shapes], Step]]:
    """The rivals that take a case: compiling a step of a thousand tensors takes many minutes."""
    skipped = {"torch.compile of RAdam"} if len(shapes) > 500 else set()
    return {name: make for name, make in RIVALS.items() if name not in skipped}
