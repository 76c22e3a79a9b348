"""The tensors of an optimizer's state, declared once: their checks and their creation."""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .extension import _C
from .options import Group, get

State = dict[str, Any]

CPU = torch.device("cpu")


class Field(NamedTuple):
    """One tensor of a parameter's state.

    Attributes:
        name: Its key, and its role in csrc/roles.def.
        is_moment: Whether it is a moment, with the shape and device of the parameter; otherwise it
            is the step counter.
        option: The option that requires it, or None if every state has it.
    """

    name: str
    is_moment: bool = True
    option: str | None = None


# In the order of torch.optim.RAdam.
STATE = (
    Field("step", is_moment=False),
    Field("exp_avg"),
    Field("exp_avg_sq"),
    Field("max_exp_avg_sq", option="amsgrad"),
)

MOMENTS = tuple(field.name for field in STATE if field.is_moment)
REQUIRED = tuple(field.name for field in STATE if field.option is None)

# The tensors of a segment, in the order of csrc/roles.def.
ROLES = ("param", "grad", *(field.name for field in STATE))

# Small moments share blocks of memory, and so do step counters: a step then reads memory in order.
# A block is freed with the last tensor in it.
SMALL = 65536  # elements of the largest small moment
ARENA = 1024 * 1024  # bytes per block
LINE = 256  # bytes; each moment begins at a multiple

# The dtype of the update for each dtype of a parameter.
_ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex128: torch.complex128,
    torch.complex64: torch.complex64,
}


def fields(group: Group) -> tuple[Field, ...]:
    """The state tensors that the options of a group require."""
    return tuple(field for field in STATE if field.option is None or get(group, field.option))


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's update and, by default, of its moments."""
    return _ARITHMETIC[param.dtype]


def counter_dtype() -> torch.dtype:
    """float32, or float64 if that is the default dtype. bfloat16 would stop at 256."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def has_own_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory, unlike a subclass that wraps other tensors, such as DTensor."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory without gaps or overlaps, in any order."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def check_param(param: Tensor, name: str) -> None:
    """Check a parameter.

    Raises:
        TypeError: The dtype is none of float64, float32, bfloat16, float16, complex128, complex64.
        ValueError: The layout is not strided, or several elements share memory.
    """
    if param.dtype not in _ARITHMETIC:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _ARITHMETIC)
        raise TypeError(f"{name} has dtype {param.dtype}, expected one of {supported}")
    if param.layout != torch.strided:
        raise ValueError(f"{name} has layout {param.layout}, expected torch.strided")
    if any(
        stride == 0 and size > 1 for size, stride in zip(param.shape, param.stride(), strict=True)
    ):
        raise ValueError(
            f"{name} is expanded (strides {param.stride()} for shape {tuple(param.shape)}), "
            "expected no elements that share memory"
        )


def check_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Check a gradient against its parameter.

    Raises:
        RuntimeError: The gradient is sparse.
        ValueError: Its device or shape differs from the parameter's, or only one is complex.
    """
    if grad.layout != torch.strided:
        raise RuntimeError(f"RAdam does not support sparse gradients: gradient of {name}")
    if grad.device != param.device:
        raise ValueError(f"gradient of {name} is on {grad.device}, expected {param.device}")
    if grad.shape != param.shape:
        raise ValueError(
            f"gradient of {name} has shape {tuple(grad.shape)}, expected {tuple(param.shape)}"
        )
    if grad.dtype not in _ARITHMETIC or grad.is_complex() != param.is_complex():
        raise ValueError(f"gradient of {name} has dtype {grad.dtype}, expected {param.dtype}")


def check_state(param: Tensor, state: State, name: str) -> None:
    """Check a state against its parameter.

    Raises:
        KeyError: A tensor is missing.
        ValueError: A tensor has another device, shape or dtype than the parameter requires.
    """
    for key in REQUIRED:
        if key not in state:
            raise KeyError(f"state of {name} has no {key!r}, expected {', '.join(REQUIRED)}")
    step = state["step"]
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"step of {name} has shape {tuple(step.shape)}, expected one number")
    expected_dtypes: tuple[torch.dtype, ...] = (arithmetic_dtype(param), param.dtype)
    for key in MOMENTS:
        if key not in state:
            continue
        moment = state[key]
        if moment.device != param.device:
            raise ValueError(f"{key} of {name} is on {moment.device}, expected {param.device}")
        if moment.shape != param.shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(moment.shape)}, expected {tuple(param.shape)}"
            )
        if moment.dtype not in expected_dtypes:
            raise ValueError(
                f"{key} of {name} has dtype {moment.dtype}, expected {expected_dtypes[0]}"
            )
        expected_dtypes = (moment.dtype,)  # all moments must have the same dtype


class New(NamedTuple):
    """A parameter whose state may lack tensors.

    Attributes:
        param: The parameter.
        state: Its state.
        group: Its group.
        names: Names of the tensors that the state needs.
        counter_device: Device of the step counter.
    """

    param: Tensor
    state: State
    group: Group
    names: tuple[str, ...]
    counter_device: torch.device

    def moment_dtype(self) -> torch.dtype:
        """The dtype of new moments: the dtype of existing moments, if there are any."""
        if "exp_avg" in self.state:
            dtype: torch.dtype = self.state["exp_avg"].dtype
            return dtype
        in_param_dtype = get(self.group, "moments_in_param_dtype")
        return self.param.dtype if in_param_dtype else arithmetic_dtype(self.param)


def complete_states(new: Sequence[New]) -> None:
    """Add the tensors that states lack.

    A new moment is zero and has the shape, device and, if the parameter is dense, memory order of
    the parameter. Each tensor has its own storage.
    """
    lacking = [member for member in new if not all(name in member.state for name in member.names)]
    small = [_is_small(member.param) for member in lacking]
    for field in STATE:
        wanted = [
            (member, is_small)
            for member, is_small in zip(lacking, small, strict=True)
            if field.name in member.names and field.name not in member.state
        ]
        if field.is_moment:
            _add_moments(field.name, wanted)
        else:
            dtype = counter_dtype()
            add_counters(
                [(member.state, 0.0, member.counter_device, dtype) for member, _ in wanted]
            )


def _is_small(param: Tensor) -> bool:
    """Whether new moments of a parameter go into a shared block of memory."""
    return (
        _C is not None
        and param.numel() <= SMALL
        and has_own_memory(param)
        and not param.is_meta
        and (param.is_contiguous() or is_dense(param))
    )


def add_counters(counters: Sequence[tuple[State, float, torch.device, torch.dtype]]) -> None:
    """Add a step counter to each state, given its value, device and dtype."""
    by_kind = defaultdict(list)
    for state, count, device, dtype in counters:
        by_kind[device, dtype].append((state, count))
    for (device, dtype), members in by_kind.items():
        steps = torch.tensor([count for _, count in members], dtype=dtype, device=device)
        for i, (state, _) in enumerate(members):
            state["step"] = steps[i].clone() if _C is None else _C.slice_of(steps, i, [], [])


def _add_moments(name: str, new: Sequence[tuple[New, bool]]) -> None:
    small = defaultdict(list)
    for member, is_small in new:
        param, dtype = member.param, member.moment_dtype()
        if is_small:
            small[param.device, dtype].append(member)
        else:
            member.state[name] = torch.zeros_like(
                param, dtype=dtype, memory_format=torch.preserve_format
            )
    for (device, dtype), members in small.items():
        sizes = [-(-m.param.numel() * dtype.itemsize // LINE) * LINE for m in members]
        ends = list(accumulate(sizes))
        first = 0  # first member of a block
        while first < len(members):
            start = ends[first] - sizes[first]
            end = bisect(ends, start + ARENA)
            arena = torch.zeros(
                (ends[end - 1] - start) // dtype.itemsize, dtype=dtype, device=device
            )
            for i in range(first, end):
                param = members[i].param
                offset = (ends[i] - sizes[i] - start) // dtype.itemsize
                members[i].state[name] = _C.slice_of(arena, offset, param.shape, param.stride())
            first = end


def move_counter(state: State, device: torch.device) -> None:
    """Move the step counter to a device. The tensor stays the same object."""
    step = state["step"]
    if not isinstance(step, Tensor):
        state["step"] = torch.tensor(float(step), dtype=counter_dtype(), device=device)
        return
    dtype = step.dtype if step.dtype in (torch.float32, torch.float64) else counter_dtype()
    if step.device != device or step.dtype != dtype:
        step.data = step.to(device, dtype)


def take_over_layout(param: Tensor, state: State, names: Iterable[str]) -> None:
    """Convert moments to the parameter's memory order; a checkpoint can have another one.

    Each moment stays the same object.
    """
    stride = param.stride()
    expected: tuple[int, ...] | None = None
    for name in names:
        moment = state[name]
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


def restore_loaded(
    groups: Sequence[dict[str, Any]], states: dict[Tensor, Any], state_dict: dict[str, Any]
) -> None:
    """Undo two effects of torch's load_state_dict on a state.

    torch casts the moments of 16-bit parameters to the parameter's dtype. It also shares the step
    counters with the state_dict, so that the optimizer it came from would go on changing them.

    Args:
        groups: The parameter groups, after loading.
        states: The state, after loading.
        state_dict: The state_dict that was loaded.
    """
    shared = []
    for group, saved_group in zip(groups, state_dict["param_groups"], strict=True):
        for param, saved_id in zip(group["params"], saved_group["params"], strict=True):
            saved = state_dict["state"].get(saved_id, {})
            state = states.get(param, {})
            step = state.get("step")
            if isinstance(step, Tensor) and step is saved.get("step"):
                dtype = step.dtype if step.dtype.itemsize >= 4 else counter_dtype()
                shared.append((state, float(step), step.device, dtype))
            if param.dtype.itemsize > 2:
                continue
            for key in MOMENTS:
                if key in saved:
                    dtype = saved[key].dtype
                    kept = dtype if dtype == param.dtype else arithmetic_dtype(param)
                    state[key] = saved[key].to(device=param.device, dtype=kept)
    add_counters(shared)
