"""The compiled engines' raw surface; only radam_fused.backends calls it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .rectification import Coefficients

class TensorTable:
    def __init__(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        steps: Tensor,
        amsgrad: bool,
        flat: list[Tensor | None] | None = None,
        chunk: int = 1,
        counts_on_device: bool = False,
    ) -> None: ...
    def refresh(self, alignment: int) -> list[float] | None: ...
    def finish(self) -> None: ...
    @property
    def segments(self) -> bytes: ...
    @property
    def ranges(self) -> int: ...
    @property
    def active(self) -> list[int]: ...
    @property
    def active_is_unchanged(self) -> bool: ...

def connect() -> None: ...
def any_gradient(params: list[Tensor]) -> bool: ...
def same_objects(held: list[Any] | dict[Any, Any], expected: list[Any]) -> bool: ...
def instruction_sets() -> list[str]: ...
def cpu_step(
    table: TensorTable, coefficients: Sequence[Coefficients], threads: int, instruction_set: str
) -> None: ...

# Only where the extension was built with CUDA.
cuda_architectures: str
cuda_chunk: int

def cuda_missing() -> str | None: ...
def cuda_unusable(device: int) -> str | None: ...
def cuda_workspace_bytes(rows: int) -> int: ...

class CudaLaunch:
    def __init__(self) -> None: ...
    def step(
        self,
        table: TensorTable,
        workspace: Tensor,
        stream: int,
        coefficients: Sequence[Coefficients],
    ) -> None: ...
    def counting_step(
        self,
        table: TensorTable,
        workspace: Tensor,
        stream: int,
        options: dict[str, Any],
        lr: Tensor | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None: ...
