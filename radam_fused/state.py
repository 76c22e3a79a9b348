"""The tensors of a step: those of a state are declared here, once; and the checks of them all."""

from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import Group, OptionSet

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

# The dtype of the update for each dtype of a parameter.
_ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex128: torch.complex128,
    torch.complex64: torch.complex64,
}


def needed(group: Group, options: OptionSet) -> tuple[str, ...]:
    """The names of the state tensors that the options of a group require."""
    return tuple(
        field.name for field in STATE if field.option is None or options.get(group, field.option)
    )


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's update and, by default, of its moments."""
    return _ARITHMETIC[param.dtype]


def is_narrow(param: Tensor) -> bool:
    """Whether a parameter is bfloat16 or float16."""
    return param.dtype in (torch.bfloat16, torch.float16)


def counter_dtype(fused: bool = False) -> torch.dtype:
    """float32, or float64 if that is the default dtype; always float32 if fused, as in torch.

    bfloat16 would stop at 256.
    """
    if fused or torch.get_default_dtype() != torch.float64:
        return torch.float32
    return torch.float64


def has_own_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory, unlike a subclass that wraps other tensors, such as DTensor."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory without gaps or overlaps, in any order."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def can_step(param: Tensor) -> bool:
    """Whether a parameter has a dtype and a layout that a step supports."""
    return param.dtype in _ARITHMETIC and param.layout == torch.strided and not _is_expanded(param)


def _is_expanded(tensor: Tensor) -> bool:
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in strides)


def is_freed(tensor: Tensor) -> bool:
    """Whether the storage of a tensor has been freed."""
    return has_own_memory(tensor) and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def check_memory(tensor: Tensor, name: str) -> None:
    """Check that a tensor has memory.

    Raises:
        ValueError: Its storage was freed, as by ``tensor.untyped_storage().resize_(0)``.
    """
    if is_freed(tensor):
        raise ValueError(f"the storage of {name} has been freed, expected memory")


def check_param(param: Tensor, name: str) -> None:
    """Check a parameter.

    Raises:
        TypeError: The dtype is none of float64, float32, bfloat16, float16, complex128, complex64.
        ValueError: The layout is not strided, several elements share memory, or the storage was
            freed.
    """
    if param.dtype not in _ARITHMETIC:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _ARITHMETIC)
        raise TypeError(f"{name} has dtype {param.dtype}, expected one of {supported}")
    if param.layout != torch.strided:
        raise ValueError(f"{name} has layout {param.layout}, expected torch.strided")
    if _is_expanded(param):
        raise ValueError(
            f"{name} is expanded (strides {param.stride()} for shape {tuple(param.shape)}), "
            "expected no elements that share memory"
        )
    check_memory(param, name)


def check_grad(param: Tensor, grad: Tensor, name: str, algorithm: str = "RAdam") -> None:
    """Check a gradient against its parameter.

    Raises:
        RuntimeError: The gradient is sparse.
        ValueError: Its device or shape differs from the parameter's, only one is complex, or its
            storage was freed.
    """
    if grad.layout != torch.strided:
        raise RuntimeError(f"{algorithm} does not support sparse gradients: gradient of {name}")
    if grad.device != param.device:
        raise ValueError(f"gradient of {name} is on {grad.device}, expected {param.device}")
    if grad.shape != param.shape:
        raise ValueError(
            f"gradient of {name} has shape {tuple(grad.shape)}, expected {tuple(param.shape)}"
        )
    if grad.dtype not in _ARITHMETIC or grad.is_complex() != param.is_complex():
        raise ValueError(f"gradient of {name} has dtype {grad.dtype}, expected {param.dtype}")
    check_memory(grad, f"the gradient of {name}")


def check_count(count: float, name: str) -> None:
    """Check a step count. It can have a fraction: an average of states has one.

    Raises:
        ValueError: It is negative, infinite or NaN.
    """
    if not 0 <= count < inf:
        raise ValueError(f"step of {name} is {count}, expected a count of at least 0")


def check_state(param: Tensor, state: State, name: str) -> None:
    """Check a state against its parameter.

    Raises:
        KeyError: A tensor is missing.
        ValueError: A tensor has another device, shape or dtype than the parameter requires, its
            storage was freed, or the step count is negative, infinite or NaN.
    """
    for key in REQUIRED:
        if key not in state:
            raise KeyError(f"state of {name} has no {key!r}, expected {', '.join(REQUIRED)}")
    step = state["step"]
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"step of {name} has shape {tuple(step.shape)}, expected one number")
    if not isinstance(step, Tensor):
        check_count(float(step), name)
    else:
        check_memory(step, f"step of {name}")
        if step.device.type == "cpu" and has_own_memory(step):
            check_count(step.item(), name)
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
        check_memory(moment, f"{key} of {name}")
