"""The step as a function over lists of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends, hyperparameters
from .inputs import StepInputs
from .tensors import check_grad, check_param, check_state

__all__ = ["radam_step_"]


@torch.no_grad()
def radam_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    *,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    rectify: bool = True,
    rectify_threshold: float = 5.0,
    exact_rectification: bool = False,
    degenerated_to_sgd: bool = True,
    eps_after_bias_correction: bool = False,
    absolute_weight_decay: bool = False,
    decay_skipped_steps: bool = True,
    backend: str = "auto",
) -> None:
    """One step of Rectified Adam on lists of tensors, in place (arXiv 1908.03265, Algorithm 2).

    Nothing is kept between calls; :class:`radam_fused.FusedRAdam` keeps that work from step to
    step.

    Args:
        params: Parameters of float64, float32, bfloat16, float16, complex128 or complex64.
        grads: Their gradients, only read.
        exp_avgs: First moments, of the parameters' shapes; float32, or the parameter's dtype.
        exp_avg_sqs: Second moments, likewise.
        state_steps: Steps taken before this one, a 0-d tensor for each parameter; 1 is added.
        max_exp_avg_sqs: Running maxima of the second moments, which ask for amsgrad.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        decoupled_weight_decay: As in :class:`radam_fused.FusedRAdam`, as all that follow.
        maximize: Ascend.
        rectify: Rectify.
        rectify_threshold: Rectified where rho_t is greater.
        exact_rectification: Take r_t from the exact variance.
        degenerated_to_sgd: Step by the momentum where not rectified.
        eps_after_bias_correction: Place of eps.
        absolute_weight_decay: Decoupled decay whatever the learning rate.
        decay_skipped_steps: Decoupled decay also where no step is taken.
        backend: "auto", "cuda", "triton", "cpu" or "eager".

    Raises:
        ValueError: An argument is out of range, or a tensor does not fit its parameter.
        TypeError: A parameter has an unsupported dtype.
        RuntimeError: A gradient is sparse, the backend asked for cannot serve, or a CUDA graph is
            being captured.
    """
    group = {
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "capturable": False,
        "differentiable": False,
        "rectify": rectify,
        "rectify_threshold": rectify_threshold,
        "exact_rectification": exact_rectification,
        "degenerated_to_sgd": degenerated_to_sgd,
        "eps_after_bias_correction": eps_after_bias_correction,
        "absolute_weight_decay": absolute_weight_decay,
        "decay_skipped_steps": decay_skipped_steps,
    }
    hyperparameters.check(group)
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "radam_step_ counts on the host, so a graph would repeat one and the same step; "
            "capture FusedRAdam(capturable=True)"
        )
    amsgrad = max_exp_avg_sqs is not None
    lists: dict[str, Sequence[Tensor]] = {
        "step": state_steps,
        "exp_avg": exp_avgs,
        "exp_avg_sq": exp_avg_sqs,
    }
    if max_exp_avg_sqs is not None:
        lists["max_exp_avg_sq"] = max_exp_avg_sqs
    for name, tensors in {"grads": grads, **lists}.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors, expected {len(params)}")

    by_backend: dict[backends.Backend, list[tuple[Tensor, dict[str, Tensor]]]] = {}
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        name = f"parameter {i}"
        state = {key: tensors[i] for key, tensors in lists.items()}
        check_param(param, name)
        if grad is None:
            raise ValueError(f"gradient of {name} is None, expected a tensor")
        check_grad(param, grad, name)
        check_state(param, state, name)
        alias = param.detach()
        alias.grad_dtype = None  # any floating dtype
        alias.grad = grad
        chosen = backends.select(backend, param, name, False, False)
        by_backend.setdefault(chosen, []).append((alias, {**state, "step": state["step"].clone()}))

    inputs = StepInputs(group)
    work = []
    for chosen, members in by_backend.items():
        aliases, states = zip(*members, strict=True)
        for launch in chosen.launches(aliases, states, backends.Setup(amsgrad)):
            if not launch.refresh(inputs):
                raise RuntimeError("the tensors changed while the step was prepared")
            work.append(launch)
    for launch in work:
        launch.run()
    for step in state_steps:
        step += 1
