"""radam_step_, the step as a function of lists of tensors."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from . import backends
from .allocation import move_counters
from .docstrings import documents
from .dtensors import local
from .faults import changed
from .option_sets import RADAM
from .options import COEFFICIENTS
from .separation import are_apart
from .state import (
    CPU,
    MOMENTS,
    arithmetic_dtype,
    check_grad,
    check_param,
    check_state,
    counter_dtype,
)
from .tensors import describe

__all__ = ["radam_step_"]


@torch.no_grad()
@documents(COEFFICIENTS)
def radam_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    *,
    backend: str = "auto",
    **options: Any,
) -> None:
    """One step of Rectified Adam on lists of tensors, in place (arXiv 1908.03265, Algorithm 2).

    The function keeps nothing between calls. `radam_fused.FusedRAdam` is faster, because it
    keeps its plan.

    Args:
        params: Parameters: float64, float32, bfloat16, float16, complex128 or complex64.
        grads: Gradients, one per parameter; they are only read.
        exp_avgs: First moments, with the shapes of the parameters; float32 (float64, complex) or
            the parameter's dtype.
        exp_avg_sqs: Second moments, with the shapes and dtypes of the first moments.
        state_steps: Step counters before this step, one 0-d tensor per parameter; the function adds
            1 to each.
        max_exp_avg_sqs: Running maxima of the second moments, for AMSGrad.
        backend: "auto", "cuda", "triton", "cpu" or "eager".
        **options: Options of the step, with the names and defaults of FusedRAdam.
        {options}

    Raises:
        ValueError: An argument is out of range, or a tensor does not fit its parameter.
        TypeError: An argument has the wrong type, a parameter has an unsupported dtype, or an
            option does not exist.
        RuntimeError: A gradient is sparse, the named backend cannot update a parameter, or a CUDA
            graph is being captured.
    """
    for name in options:
        if name not in COEFFICIENTS:
            raise TypeError(f"radam_step_() got an unexpected keyword argument {name!r}")
    group = {**RADAM.defaults, **options}
    RADAM.check(group)
    lists: dict[str, Sequence[Tensor]] = {
        "step": state_steps,
        "exp_avg": exp_avgs,
        "exp_avg_sq": exp_avg_sqs,
    }
    if max_exp_avg_sqs is not None:
        lists["max_exp_avg_sq"] = max_exp_avg_sqs
    _check_lists(
        params=params,
        grads=grads,
        state_steps=state_steps,
        **{f"{key}s": tensors for key, tensors in lists.items() if key != "step"},
    )

    launches, states = backends.Launches(), {}
    moments = [name for name in lists if name in MOMENTS]
    aliases = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        name = f"parameter {i}"
        state = {key: tensors[i] for key, tensors in lists.items()}
        check_param(param, name)
        check_grad(param, grad, name)
        check_state(param, state, name)
        if exp_avgs[i].dtype not in (arithmetic_dtype(param), param.dtype):
            raise ValueError(
                f"exp_avg of {name} has dtype {exp_avgs[i].dtype}, expected "
                f"{arithmetic_dtype(param)} or the parameter's"
            )
        if not isinstance(state["step"], Tensor):
            raise TypeError(
                f"step of {name} is {state['step']!r}, expected a tensor of one element"
            )
        alias = param.detach()
        alias.grad_dtype = None  # any floating dtype
        alias.grad = grad
        chosen, _ = backends.select(backend, local(param), name, False, False)
        aliases.append((alias, chosen))
        # New tensor objects: a launch may change their data, but not the caller's tensors.
        states[alias] = {key: tensor.detach() for key, tensor in state.items()}
        states[alias]["step"] = states[alias]["step"].clone()
    if any(map(backends.is_capturing, {alias.device for alias, _ in aliases})):
        raise RuntimeError(
            "radam_step_ cannot be captured: it counts steps on the host, so every replay would "
            "repeat one step. Capture FusedRAdam(capturable=True)"
        )
    group["params"] = [alias for alias, _ in aliases]
    group["param_names"] = range(len(aliases))
    move_counters((state, CPU, counter_dtype()) for state in states.values())
    for i, (alias, chosen) in enumerate(aliases):
        launches.add((0, i), alias, grads[i], states[alias], moments, chosen)
    step = backends.Step([group], RADAM, backends.new_numbers(RADAM))
    if step.numbers is not None:
        step.numbers.read(step.groups)
    if not launches.read(step.groups, states):
        raise changed(step.groups, states, *launches.misfit())
    are_apart(launches, step.groups, states)
    launches.place_gradients(step)
    launches.compute(step)
    launches.run()
    for i, (alias, _) in enumerate(aliases):
        for key in moments:
            moment, given = states[alias][key], lists[key][i]
            # Converted to another memory order or placement.
            if local(moment).data_ptr() != local(given).data_ptr():
                given.copy_(moment)
    for counter in state_steps:
        counter += 1


def _check_lists(**lists: Any) -> None:
    for name, tensors in lists.items():
        is_list = hasattr(tensors, "__len__") and hasattr(tensors, "__getitem__")
        if not is_list or isinstance(tensors, Tensor | str | Mapping):
            raise TypeError(f"{name} is {describe(tensors)}, expected a list of tensors")
    expected = len(lists["params"])
    for name, tensors in lists.items():
        if len(tensors) != expected:
            raise ValueError(f"{name} has {len(tensors)} tensors, expected {expected}")


def _with_options() -> Any:
    """The signature of radam_step_, with every option."""
    declared_here = signature(radam_step_)
    *before, _ = declared_here.parameters.values()
    named = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=RADAM.defaults[name])
        for name in COEFFICIENTS
    ]
    return declared_here.replace(parameters=[*before, *named])


radam_step_.__signature__ = _with_options()  # type: ignore[attr-defined]
