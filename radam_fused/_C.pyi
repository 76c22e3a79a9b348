"""The compiled engines' raw surface; only radam_fused.backends calls it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .rectification import Coefficients

class TensorTable:
    def __init__(
        self, params: list[Tensor], states: list[dict[str, Any]], steps: Tensor, amsgrad: bool
    ) -> None: ...
    def refresh(self) -> list[float] | None: ...
    @property
    def active(self) -> list[int]: ...
    @property
    def all_active(self) -> bool: ...

def same_objects(held: list[Any] | dict[Any, Any], expected: list[Any]) -> bool: ...
def instruction_sets() -> list[str]: ...
def cpu_step(
    table: TensorTable, coefficients: Sequence[Coefficients], threads: int, instruction_set: str
) -> None: ...
