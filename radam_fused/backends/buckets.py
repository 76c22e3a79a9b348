"""What the engines that work on addresses share: a table of tensors, and what goes into it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flat import ALIGNMENT
from ..tensors import gather_counters, is_dense, moment_names
from . import extension
from .base import Setup, State
from .staged import Staged


class Bucket:
    """Parameters of the same dtypes, on one device, that one launch steps."""

    def __init__(
        self, members: Sequence[tuple[Tensor, State, Staged | None]], setup: Setup
    ) -> None:
        self.params = [param for param, _, _ in members]
        self.states = [state for _, state, _ in members]
        self.staged = {i: stage for i, (*_, stage) in enumerate(members) if stage is not None}
        self.setup = setup

    def __len__(self) -> int:
        return len(self.params)


class Table:
    """A bucket's tensors in a table of addresses, and what autograd has to know of a step."""

    def __init__(self, bucket: Bucket, table_type: Any, chunk: int, counts_on_device: bool) -> None:
        self._bucket = bucket
        params, states = list(bucket.params), list(bucket.states)
        device = params[0].device if counts_on_device else torch.device("cpu")
        self.counters = gather_counters(states, device)
        for i, stage in bucket.staged.items():
            stage.state["step"] = states[i]["step"]
            params[i], states[i] = stage.param, stage.state
        names = moment_names(bucket.setup.amsgrad)
        flat = None if bucket.staged else bucket.setup.flat
        buffers = None if flat is None else flat.of(params[0]).roles(names)
        self.rows = table_type(
            params, states, self.counters, bucket.setup.amsgrad, buffers, chunk, counts_on_device
        )
        self._written: list[Tensor] = []
        self._written_back: list[Staged] = []

    def refresh(self, eps: float) -> list[float] | None:
        """Read every tensor anew.

        Args:
            eps: The step's; without it padding would divide zero by zero.

        Returns:
            The distinct step counts that the host has to know coefficients for, or None where a
            tensor has changed.
        """
        for i, stage in self._bucket.staged.items():
            if not stage.read(self._bucket.params[i], self._bucket.states[i]):
                return None
        due: list[float] | None = self.rows.refresh(ALIGNMENT if eps > 0 else 0)
        return due

    def announce_writes(self) -> None:
        """Count up the versions of what the step writes: autograd does not see addresses."""
        if not self.rows.active_is_unchanged:
            active = self.rows.active
            self._written = self._version_owners(active)
            staged = self._bucket.staged
            self._written_back = [staged[i] for i in active if i in staged]
        torch.autograd.graph.increment_version(self._written)

    def finish(self) -> None:
        """Count the step, and copy staged parameters and moments to where they belong."""
        self.rows.finish()
        for stage in self._written_back:
            stage.write()

    def _version_owners(self, rows: Sequence[int]) -> list[Tensor]:
        """One tensor for each version counter of what is written: a view has its base's."""
        owners = {}
        for i in reversed(rows):  # the last rows are the likeliest to be in cache
            state = self._bucket.states[i]
            names = ("step", *moment_names(self._bucket.setup.amsgrad))
            for tensor in (self._bucket.params[i], *(state[name] for name in names)):
                owner = tensor if tensor._base is None else tensor._base
                owners[id(owner)] = owner
        return list(owners.values())


def _fits(param: Tensor, state: State, amsgrad: bool) -> bool:
    tensors = [param, *(state[key] for key in moment_names(amsgrad))]
    if param.grad is not None:
        tensors.append(param.grad)
    if any(tensor.is_neg() or tensor.is_conj() for tensor in tensors):
        return False
    try:
        counter = torch.zeros(1, dtype=torch.float32, device="cpu")
        extension.TensorTable([param], [state], counter, amsgrad)
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


def buckets(params: Sequence[Tensor], states: Sequence[State], setup: Setup) -> Iterator[Bucket]:
    """Sort parameters by what one launch can step together."""
    by_key: dict[tuple[object, ...], list[tuple[Tensor, State, Staged | None]]]
    by_key = defaultdict(list)
    amsgrad = setup.amsgrad
    for param, state in zip(params, states, strict=True):
        _take_over_layout(param, state, amsgrad)
        grad_dtype = param.dtype if param.grad is None else param.grad.dtype
        moments = (state[name].dtype for name in moment_names(amsgrad))
        stage = None if _fits(param, state, amsgrad) else Staged(param, state, amsgrad)
        # What is staged lies outside of the flat buffers, so it needs a table of its own.
        apart = setup.flat is not None and stage is not None
        key = (param.device, param.dtype, grad_dtype, *moments, apart)
        by_key[key].append((param, state, stage))
    return (Bucket(members, setup) for members in by_key.values())
