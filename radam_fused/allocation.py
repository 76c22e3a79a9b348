"""The creation of state tensors, and their moves to other devices, dtypes and memory orders."""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .conversions import convert_moments, drop_masters, take_master
from .dtensors import are_placed_alike, is_dtensor, local, placed_like, redistribute
from .extension import _C
from .formats import Format, format_of
from .option_sets import OptionSet
from .options import Group
from .state import (
    CPU,
    STATE,
    Field,
    Role,
    State,
    counter_dtype,
)
from .tensors import has_own_memory, is_dense

# Small moments share blocks of memory, and so do step counters: a step then reads memory in order.
# A block is freed with the last tensor in it.
SMALL = 65536  # elements of the largest small moment
ARENA = 1024 * 1024  # bytes per block
LINE = 256  # bytes; each moment begins at a multiple


class New(NamedTuple):
    """A parameter whose state may lack tensors.

    Attributes:
        param: The parameter.
        state: Its state.
        counter_device: Device of the step counter.
        counter_dtype: Dtype of the step counter.
        format: How the parameter and its state are stored.
    """

    param: Tensor
    state: State
    counter_device: torch.device
    counter_dtype: torch.dtype
    format: Format


def new(param: Tensor, state: State, group: Group, options: OptionSet) -> New:
    """What the state of a parameter needs under the options of its group."""
    return New(
        param,
        state,
        param.device if options.counts_on_device(group) else CPU,
        counter_dtype(bool(options.get(group, "fused"))),
        format_of(param, group, options),
    )


def complete_states(new: Sequence[New]) -> None:
    """Add the tensors that states lack.

    A new moment is zero and has the shape, device and, if the parameter is dense, memory order of
    the parameter; that of a DTensor is a DTensor. Each tensor has its own storage. A new master is
    the value of the parameter, or that of a master in another format, which is then dropped.
    Moments of another dtype are converted.
    """
    for member in new:
        convert_moments(member.state, member.format.moments)
    lacking = [m for m in new if not all(name in m.state for name in m.format.names)]
    small = [_is_small(member.param) for member in lacking]
    for field in STATE:
        wanted = [
            (member, is_small)
            for member, is_small in zip(lacking, small, strict=True)
            if field.name in member.format.names and field.name not in member.state
        ]
        if field.role is Role.COUNTER:
            _add_counters([member for member, _ in wanted])
        else:
            _add_elementwise(field, wanted)
        if field.role is Role.MASTER:
            for member, _ in wanted:
                take_master(member.param, member.state, field.name)
    for member in new:
        drop_masters(member.state, member.format.names)


def _is_small(param: Tensor) -> bool:
    """Whether new moments of a parameter go into a shared block of memory."""
    param = local(param)
    return (
        _C is not None
        and param.numel() <= SMALL
        and has_own_memory(param)
        and not param.is_meta
        and (param.is_contiguous() or is_dense(param))
    )


def _add_counters(members: Sequence[New]) -> None:
    by_kind = defaultdict(list)
    for member in members:
        by_kind[member.counter_device, member.counter_dtype].append(member)
    for (device, dtype), alike in by_kind.items():
        steps = torch.zeros(len(alike), dtype=dtype, device=device)
        for member, step in zip(alike, numbers_of(steps), strict=True):
            member.state["step"] = step


def numbers_of(tensor: Tensor) -> list[Tensor]:
    """The elements of a new 1-d tensor, as 0-d tensors with a storage of their own."""
    if _C is not None and has_own_memory(tensor) and not tensor.is_meta:
        return [_C.slice_of(tensor, i, [], []) for i in range(len(tensor))]
    # A fake tensor knows its value only as a new number.
    if isinstance(tensor, FakeTensor):
        return [
            torch.tensor(0.0, dtype=tensor.dtype, device=tensor.device) for _ in range(len(tensor))
        ]
    return [tensor[i].clone() for i in range(len(tensor))]


def _add_elementwise(field: Field, new: Sequence[tuple[New, bool]]) -> None:
    name, small = field.name, defaultdict(list)
    for member, is_small in new:
        param, dtype = local(member.param), field.dtype or member.format.moments
        if is_small:
            small[param.device, dtype].append(member)
        else:
            moment = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            member.state[name] = placed_like(member.param, moment)
    for (device, dtype), members in small.items():
        params = [local(member.param) for member in members]
        sizes = [-(-param.numel() * dtype.itemsize // LINE) * LINE for param in params]
        ends = list(accumulate(sizes))
        first = 0  # first member of a block
        while first < len(members):
            start = ends[first] - sizes[first]
            end = bisect(ends, start + ARENA)
            arena = torch.zeros(
                (ends[end - 1] - start) // dtype.itemsize, dtype=dtype, device=device
            )
            for i in range(first, end):
                offset = (ends[i] - sizes[i] - start) // dtype.itemsize
                moment = _C.slice_of(arena, offset, params[i].shape, params[i].stride())
                members[i].state[name] = placed_like(members[i].param, moment)
            first = end


def move_counters(counters: Iterable[tuple[State, torch.device, torch.dtype]]) -> None:
    """Move step counters to devices, in one copy a device.

    A tensor stays the same object; a number becomes a tensor.

    Args:
        counters: States, each with the device that its counter belongs to, and the dtype of a
            counter that is a number or has a dtype other than float32 and float64.
    """
    moving = defaultdict(list)
    for state, device, dtype in counters:
        step = state["step"]
        if not isinstance(step, Tensor):
            step = state["step"] = torch.tensor(float(step), dtype=dtype, device=CPU)
        kept = step.dtype if step.dtype in (torch.float32, torch.float64) else dtype
        if step.device != device or step.dtype != kept:
            moving[step.device, step.dtype, device, kept].append(step)
    for (*_, device, dtype), steps in moving.items():
        moved = torch.stack([step.detach().reshape(()) for step in steps]).to(device, dtype)
        for step, number in zip(steps, numbers_of(moved), strict=True):
            step.data = number


def take_over_placements(param: Tensor, state: State, names: Iterable[str]) -> None:
    """Redistribute moments that are placed in another way than their parameter.

    A collective operation.
    """
    if is_dtensor(param):
        moving = [name for name in names if not are_placed_alike(param, state[name])]
        state.update(redistribute({name: (state[name], param) for name in moving}))


def take_over_layout(param: Tensor, state: State, names: Iterable[str]) -> None:
    """Convert moments to the parameter's memory order; a checkpoint can have another one.

    Each moment stays the same object.
    """
    param = local(param)
    stride = param.stride()
    expected: tuple[int, ...] | None = None
    for name in names:
        moment = local(state[name])
        is_lazy = moment.is_complex() and moment.is_conj()
        if moment.stride() == stride and not is_lazy:
            continue
        if expected is None:
            expected = torch.empty_like(param, device="meta").stride()
        strides = zip(moment.shape, moment.stride(), expected, strict=True)
        # A dimension of size 1 can have any stride.
        if is_lazy or any(n > 1 and a != b for n, a, b in strides):
            moved = torch.empty_like(param, dtype=moment.dtype)
            moment.data = moved.copy_(moment)
