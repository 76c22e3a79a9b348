"""What a step asks of a parameter, its gradient and its state, and the errors when it is not so."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

# Elements up to which a parameter's moments share an allocation with others': 256 KiB of float32.
SMALL = 65536

# The dtype of the update for each dtype of a parameter; complex numbers are two reals.
_ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex128: torch.complex128,
    torch.complex64: torch.complex64,
}


def moment_names(amsgrad: bool) -> tuple[str, ...]:
    """Names of the state's moment tensors."""
    return MOMENTS if amsgrad else MOMENTS[:2]


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """The dtype in which the parameter is updated, and in which its moments are kept by default."""
    return _ARITHMETIC[param.dtype]


def has_own_memory(tensor: Tensor) -> bool:
    """Whether the tensor is plain memory, not a subclass that wraps other tensors (as DTensor)."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def counter_dtype() -> torch.dtype:
    """The dtype of a step counter, as torch chooses it: never one that stops counting early."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def check_param(param: Tensor, name: str) -> None:
    """Raise where no engine could ever step this parameter.

    Raises:
        TypeError: The dtype is none of float64, float32, bfloat16, float16, complex128, complex64.
        ValueError: The layout is not strided, or elements share memory.
    """
    if param.dtype not in _ARITHMETIC:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _ARITHMETIC)
        raise TypeError(f"{name} has dtype {param.dtype}, expected one of {supported}")
    if param.layout != torch.strided:
        raise ValueError(f"{name} has layout {param.layout}, expected torch.strided")
    if any(
        stride == 0 and size > 1 for size, stride in zip(param.shape, param.stride(), strict=True)
    ):
        raise ValueError(f"{name} is expanded: several of its elements share one place in memory")


def check_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Raise where a gradient does not fit its parameter.

    Raises:
        RuntimeError: The gradient is sparse.
        ValueError: Its device, shape or kind of number differs from the parameter's.
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


def check_state(param: Tensor, state: dict[str, Any], name: str) -> None:
    """Raise where an optimizer state does not fit its parameter.

    Raises:
        KeyError: An entry is missing.
        ValueError: An entry differs in device, shape or dtype from what the parameter needs.
    """
    for key in ("step", "exp_avg", "exp_avg_sq"):
        if key not in state:
            raise KeyError(f"state of {name} has no {key!r}")
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
        expected_dtypes = (moment.dtype,)  # of all that follow, as engines have it


def new_states(
    params: Sequence[Tensor], amsgrad: bool, in_param_dtype: bool
) -> list[dict[str, Any]]:
    """The states of parameters before their first step, under torch's keys.

    Moments of small parameters lie side by side in one allocation for each device and dtype: a step
    over a thousand of them spends most of its time finding them in memory.

    Args:
        params: The parameters, whose memory order the moments take over.
        amsgrad: Keep the running maximum as well.
        in_param_dtype: Keep the moments in the parameter's dtype even where that has 16 bits.
    """
    states: list[dict[str, Any]] = [
        {"step": torch.zeros((), dtype=counter_dtype(), device="cpu")} for _ in params
    ]
    small: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, param in enumerate(params):
        dtype = param.dtype if in_param_dtype else arithmetic_dtype(param)
        if has_own_memory(param) and param.numel() <= SMALL and is_dense(param):
            small.setdefault((param.device, dtype), []).append(i)
            continue
        for key in moment_names(amsgrad):
            states[i][key] = torch.zeros_like(
                param, dtype=dtype, memory_format=torch.preserve_format
            )
    for (device, dtype), members in small.items():
        # Each starts on a cache line of its own whatever the dtype.
        sizes = [-(-params[i].numel() // 64) * 64 for i in members]
        for key in moment_names(amsgrad):
            together = torch.zeros(sum(sizes), dtype=dtype, device=device)
            for i, part in zip(members, torch.split(together, sizes), strict=True):
                states[i][key] = part.as_strided(params[i].shape, params[i].stride())
    return states


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory, each place once, in whatever order."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def gather_counters(states: Iterable[dict[str, Any]], device: torch.device) -> Tensor:
    """Move the step counters of several states into one tensor, each state keeping its view.

    Args:
        states: The states.
        device: Where the steps are counted. Counters that are there already are not waited for.
    """
    states = list(states)
    steps, dtype = [state["step"] for state in states], counter_dtype()
    if device.type != "cpu" and all(step.device == device for step in steps):
        counters = torch.stack([step.to(dtype).reshape(()) for step in steps])
    else:
        counters = torch.tensor([float(step) for step in steps], dtype=dtype, device=device)
    for state, counter in zip(states, counters.unbind(), strict=True):
        state["step"] = counter
    return counters
