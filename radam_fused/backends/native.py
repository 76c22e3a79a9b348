"""The compiled engines, through radam_fused._C."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..rectification import Coefficients
from ..tensors import gather_counters, has_own_memory, is_dense, moment_names
from .base import Backend, Launch, State

_why_not: str | None = None
try:
    from .. import _C  # after torch: it shares torch's OpenMP threads

    _C.connect()
except (AttributeError, ImportError, RuntimeError) as error:
    _why_not = f"the extension radam_fused._C does not load: {error}"


@cache
def instruction_sets() -> list[str]:
    """Instruction sets that the CPU engine can use on this machine, best first."""
    return [] if _why_not else list(_C.instruction_sets())


class Staged:
    """A parameter that is not addressed in place, stepped in contiguous copies of all its tensors.

    For views with gaps, gradients in another memory order, lazily conjugated gradients.
    """

    def __init__(self, param: Tensor, state: State, amsgrad: bool) -> None:
        self._originals = [param, *(state[key] for key in moment_names(amsgrad))]
        self._copies = [self._blank(tensor) for tensor in self._originals]
        self.param = self._copies[0]
        self.param.grad_dtype = None  # any: the gradient's own
        if param.grad is not None:
            self.param.grad = self._blank(param.grad)
        self.state: State = dict(zip(moment_names(amsgrad), self._copies[1:], strict=True))

    @staticmethod
    def _blank(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def read(self, param: Tensor, state: State) -> bool:
        """Copy everything in; False where a tensor has changed so that the copies do not fit it."""
        grad = param.grad
        if grad is None:
            self.param.grad = None
            return True
        held = (param, *(state.get(key) for key in self.state if key != "step"))
        if state.get("step") is not self.state["step"] or not all(
            now is then and self._is_like(now, copy)
            for now, then, copy in zip(held, self._originals, self._copies, strict=True)
        ):
            return False
        if self.param.grad is None or self.param.grad.dtype != grad.dtype:
            self.param.grad = self._blank(grad)
        if not self._is_like(grad, self.param.grad):
            return False
        for copy, original in zip(self._copies, self._originals, strict=True):
            copy.copy_(original.detach())
        self.param.grad.copy_(grad.detach())
        return True

    @staticmethod
    def _is_like(tensor: Tensor, copy: Tensor) -> bool:
        return (
            tensor.layout is torch.strided
            and tensor.shape == copy.shape
            and tensor.dtype == copy.dtype
            and tensor.device == copy.device
        )

    def write(self) -> None:
        """Copy the parameter and its moments back."""
        for copy, original in zip(self._copies, self._originals, strict=True):
            original.detach().copy_(copy)


class CpuLaunch:
    """Parameters with the same dtypes, stepped by one call of the CPU kernel."""

    instruction_set: str | None = None  # None: the best; tests force the others

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[State],
        staged: Sequence[Staged | None],
        amsgrad: bool,
    ) -> None:
        self._params = params
        self._states = states
        self._staged = {i: stage for i, stage in enumerate(staged) if stage is not None}
        counters = gather_counters(states)
        table_params, table_states = list(params), list(states)
        for i, stage in self._staged.items():
            stage.state["step"] = states[i]["step"]
            table_params[i], table_states[i] = stage.param, stage.state
        self._table = _C.TensorTable(table_params, table_states, counters, amsgrad)
        self._amsgrad = amsgrad
        self._written: list[Tensor] = []
        self._written_back: list[Staged] = []

    def refresh(self) -> list[float] | None:
        """See Launch.refresh."""
        for i, stage in self._staged.items():
            if not stage.read(self._params[i], self._states[i]):
                return None
        due: list[float] | None = self._table.refresh()
        return due

    def run(self, coefficients: Sequence[Coefficients]) -> None:
        """See Launch.run."""
        if not coefficients:
            return
        if not self._table.active_is_unchanged:
            active = self._table.active
            self._written = self._version_owners(active)
            self._written_back = [self._staged[i] for i in active if i in self._staged]
        # Autograd does not see writes through an address; now the tensors are still in cache.
        torch.autograd.graph.increment_version(self._written)
        instruction_set = self.instruction_set or instruction_sets()[0]
        _C.cpu_step(self._table, list(coefficients), torch.get_num_threads(), instruction_set)
        for stage in self._written_back:
            stage.write()

    def _version_owners(self, rows: Sequence[int]) -> list[Tensor]:
        """One tensor for each version counter of what is written: a view has its base's."""
        owners = {}
        for i in reversed(rows):  # the last rows are the likeliest to be in cache
            state = self._states[i]
            names = ("step", *moment_names(self._amsgrad))
            for tensor in (self._params[i], *(state[name] for name in names)):
                owner = tensor if tensor._base is None else tensor._base
                owners[id(owner)] = owner
        return list(owners.values())


def _same_objects(held: list[Any] | dict[Any, Any], expected: list[Any]) -> bool:
    """Whether a list, or the values of a dict, are these very objects in this order."""
    objects = held.values() if isinstance(held, dict) else held
    return len(held) == len(expected) and all(map(is_, objects, expected))


def _any_gradient(params: list[Tensor]) -> bool:
    """Whether some parameter has a gradient."""
    return any(param.grad is not None for param in params)


same_objects = _same_objects if _why_not else _C.same_objects
any_gradient = _any_gradient if _why_not else _C.any_gradient


def _fits(param: Tensor, state: State, amsgrad: bool) -> bool:
    tensors = [param, *(state[key] for key in moment_names(amsgrad))]
    if param.grad is not None:
        tensors.append(param.grad)
    if any(tensor.is_neg() or tensor.is_conj() for tensor in tensors):
        return False
    try:
        counter = torch.zeros(1, dtype=torch.float32, device="cpu")
        _C.TensorTable([param], [state], counter, amsgrad)
    except ValueError:
        return False
    return True


def _take_over_layout(param: Tensor, state: State, amsgrad: bool) -> None:
    """Bring moments into the memory order of a dense parameter, once: a checkpoint had another."""
    if is_dense(param):
        for name in moment_names(amsgrad):
            moment = state[name]
            strides = zip(param.shape, param.stride(), moment.stride(), strict=False)
            # The stride of a single element is never used.
            if moment.shape == param.shape and any(n > 1 and a != b for n, a, b in strides):
                moved = torch.empty_like(param, dtype=moment.dtype)
                state[name] = moved.copy_(moment)


def _launches(params: Sequence[Tensor], states: Sequence[State], amsgrad: bool) -> list[Launch]:
    buckets: dict[tuple[torch.dtype, ...], list[tuple[Tensor, State]]] = defaultdict(list)
    for param, state in zip(params, states, strict=True):
        _take_over_layout(param, state, amsgrad)
        grad_dtype = param.dtype if param.grad is None else param.grad.dtype
        key = (param.dtype, grad_dtype, *(state[name].dtype for name in moment_names(amsgrad)))
        buckets[key].append((param, state))
    return [
        CpuLaunch(
            [param for param, _ in bucket],
            [state for _, state in bucket],
            [None if _fits(*pair, amsgrad) else Staged(*pair, amsgrad) for pair in bucket],
            amsgrad,
        )
        for bucket in buckets.values()
    ]


def _refuses(param: Tensor) -> str | None:
    if param.device.type != "cpu":
        return f"it is on {param.device}, not in the CPU's memory"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return None


CPU: Backend = Backend(
    name="cpu",
    unavailable=lambda: _why_not,
    refuses=_refuses,
    launches=_launches,
)
