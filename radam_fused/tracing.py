"""What torch.compile and CUDA graphs need of an optimizer's step."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import Optimizer

# torch 2.11 renamed this method.
check_graph_capture: Callable[[Optimizer], None] = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", None
) or getattr(Optimizer, "_cuda_graph_capture_health_check")  # noqa: B009

_UNTRACED: "WeakSet[type[Optimizer]]" = WeakSet()  # classes whose step has been replaced


def leave_untraced(cls: type[Optimizer]) -> None:
    """Let torch.compile run the steps of a class, with their hooks, outside of its graphs."""
    if cls not in _UNTRACED:
        # torch.compiler.disable would import torch._dynamo here, which takes seconds.
        untraced: Any = torch._disable_dynamo(cls.step)  # type: ignore[attr-defined]
        cls.step = untraced  # type: ignore[method-assign]
        _UNTRACED.add(cls)
