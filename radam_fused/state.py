"""The tensors of a step: those of a state are declared here, once; and the checks of them all."""

from collections.abc import Mapping
from enum import Enum
from math import inf
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtensors import check_alike, check_not_partial
from .tensors import (
    check_memory,
    check_tensor,
    check_writable,
    describe,
    has_own_memory,
    overlaps_itself,
)

State = dict[str, Any]

CPU = torch.device("cpu")


class Role(Enum):
    """What a tensor of a state is. All but counters have the parameter's shape and device."""

    COUNTER = "the step counter"
    MOMENT = "a moment"
    MASTER = "what a 16-bit parameter leaves out of its float32 value"


class Field(NamedTuple):
    """One tensor of a parameter's state.

    Attributes:
        name: Its key, and its role in csrc/roles.def.
        role: What it is.
        option: The option that requires it, or None if every state has it.
        values: The values of the option that require it.
        dtype: Its dtype; None if that is the dtype of the moments, or one of a counter.
    """

    name: str
    role: Role = Role.MOMENT
    option: str | None = None
    values: tuple[Any, ...] = ()
    dtype: torch.dtype | None = None


# In the order of torch.optim.RAdam.
STATE = (
    Field("step", Role.COUNTER),
    Field("exp_avg"),
    Field("exp_avg_sq"),
    Field("max_exp_avg_sq", Role.MOMENT, "amsgrad", (True,)),
    Field("param_remainder", Role.MASTER, "master_weights", ("split",), torch.int16),
    Field("master_param", Role.MASTER, "master_weights", ("float32",), torch.float32),
)

MOMENTS = tuple(field.name for field in STATE if field.role is Role.MOMENT)
MASTERS = tuple(field.name for field in STATE if field.role is Role.MASTER)
ELEMENTWISE = (*MOMENTS, *MASTERS)
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


def can_step(param: Tensor) -> bool:
    """Whether a parameter has a dtype and a layout that a step supports."""
    is_strided = param.layout == torch.strided
    return param.dtype in _ARITHMETIC and is_strided and not overlaps_itself(param)


def check_param(param: Tensor, name: str) -> None:
    """Check a parameter.

    Raises:
        TypeError: It is not a tensor, or its dtype is none of float64, float32, bfloat16, float16,
            complex128 and complex64.
        ValueError: The layout is not strided, several elements share memory, the storage was freed,
            or it is a DTensor with a partial placement.
    """
    check_tensor(param, name, "a tensor")
    if param.dtype not in _ARITHMETIC:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _ARITHMETIC)
        raise TypeError(f"{name} has dtype {param.dtype}, expected one of {supported}")
    check_not_partial(param, name)
    check_writable(param, name)


def check_grad(param: Tensor, grad: Tensor, name: str, algorithm: str = "RAdam") -> None:
    """Check a gradient against its parameter. It can have another real or complex dtype.

    Raises:
        TypeError: It is not a tensor, or only one of both is a DTensor.
        RuntimeError: The gradient is sparse.
        ValueError: Its device, shape or mesh differs from the parameter's, only one is complex, its
            dtype is no dtype of a parameter, or its storage was freed.
    """
    check_tensor(grad, f"gradient of {name}", "a tensor")
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
    check_alike(param, grad, f"gradient of {name}")
    check_memory(grad, f"the gradient of {name}")


def check_count(count: float, name: str) -> None:
    """Check a step count. It can have a fraction: an average of states has one.

    Raises:
        ValueError: It is negative, infinite or NaN.
    """
    if not 0 <= count < inf:
        raise ValueError(f"step of {name} is {count}, expected a count of at least 0")


def check_step(step: Any, name: str) -> None:
    """Check a step counter.

    Raises:
        TypeError: It is neither a real number nor a tensor of real numbers.
        ValueError: It has several elements or no memory; or it is a number that is negative,
            infinite or NaN. The value of a tensor is not read.
    """
    if not isinstance(step, Tensor):
        if not isinstance(step, Real):
            raise TypeError(f"step of {name} is {describe(step)}, expected one number")
        try:
            check_count(float(step), name)
        except OverflowError:  # of an integer
            check_count(inf, name)
        return
    check_tensor(step, f"step of {name}", "one number")
    if step.numel() != 1:
        raise ValueError(f"step of {name} has shape {tuple(step.shape)}, expected one number")
    if step.is_complex():
        raise TypeError(f"step of {name} is {describe(step)}, expected one real number")
    check_writable(step, f"step of {name}")


def is_readable(step: Any) -> bool:
    """Whether a step counter is a tensor that can be read without waiting for a device."""
    return isinstance(step, Tensor) and step.device.type == "cpu" and has_own_memory(step)


def check_state(param: Tensor, state: Any, name: str) -> None:
    """Check a state against its parameter.

    Raises:
        KeyError: A tensor is missing.
        TypeError: It is not a mapping, holds something else than tensors, or only one of a moment
            and the parameter is a DTensor.
        ValueError: A tensor has another device, shape, mesh, dtype or layout than is required,
            elements that share memory, or no memory; or the step count is negative, infinite or
            NaN.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state of {name} is {describe(state)}, expected a dict with {', '.join(REQUIRED)}"
        )
    for key in REQUIRED:
        if key not in state:
            raise KeyError(f"state of {name} has no {key!r}, expected {', '.join(REQUIRED)}")
    step = state["step"]
    check_step(step, name)
    if is_readable(step):
        check_count(step.item(), name)
    if isinstance(step, Tensor) and step.is_meta and not param.is_meta:
        raise ValueError(f"step of {name} is on meta, expected {param.device}")
    for key in ELEMENTWISE:
        if key not in state:
            continue
        moment = state[key]
        check_moment_shape(param, moment, f"{key} of {name}")
        check_alike(param, moment, f"{key} of {name}")
        if moment.device != param.device:
            raise ValueError(f"{key} of {name} is on {moment.device}, expected {param.device}")
        expected = expected_dtypes(param, state, key)
        if moment.dtype not in expected:
            raise ValueError(f"{key} of {name} has dtype {moment.dtype}, expected {expected[0]}")
        check_writable(moment, f"{key} of {name}")


def expected_dtypes(param: Tensor, state: Mapping[Any, Any], key: str) -> tuple[torch.dtype, ...]:
    """The dtypes that a tensor of a state can have, the usual one first."""
    if key in MASTERS:
        return tuple(field.dtype for field in STATE if field.name == key and field.dtype)
    if key != "exp_avg":  # all moments have the same dtype
        return (state["exp_avg"].dtype,)
    arithmetic = arithmetic_dtype(param)
    narrow = (torch.bfloat16,) if arithmetic == torch.float32 and not param.is_complex() else ()
    return (arithmetic, param.dtype, *narrow)


def check_moment_shape(param: Tensor, moment: Any, name: str) -> None:
    """Check the shape of a moment.

    Raises:
        TypeError: It is not a tensor, or is a nested one, which has no shape.
        ValueError: Its shape is not that of the parameter.
    """
    shape = tuple(param.shape)
    check_tensor(moment, name, f"a tensor of shape {shape}")
    if tuple(moment.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(moment.shape)}, expected {shape}")
