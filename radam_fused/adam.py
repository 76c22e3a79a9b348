"""FusedAdam and FusedAdamW: the step without rectification."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import FusedOptimizer
from .docstrings import documents
from .init_group import collect
from .option_sets import ADAM, ADAMW

__all__ = ["FusedAdam", "FusedAdamW"]


def _check_tensors(lr: Any, betas: Any, foreach: bool | None, capturable: bool) -> None:
    """Raise the errors of torch.optim.Adam for tensors among the options."""
    if not isinstance(betas, list | tuple):
        return
    refused = " as a Tensor is not supported for capturable=False and foreach=True"
    if isinstance(lr, Tensor) and foreach and not capturable:
        raise ValueError("lr" + refused)
    if len({isinstance(beta, Tensor) for beta in betas}) > 1:
        raise ValueError("betas must be either both floats or both Tensors")
    for index, beta in enumerate(betas):
        if isinstance(beta, Tensor) and foreach and not capturable:
            raise ValueError(f"betas[{index}]" + refused)
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element")


@documents()
class FusedAdam(FusedOptimizer):
    """Adam in one pass over parameters, gradients and moments.

    A drop-in replacement for `torch.optim.Adam`, with the same arguments in the same order,
    the same state keys, and state_dicts that load in both directions. The update is Algorithm 1 of
    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (arXiv 1412.6980), with the kernels,
    the dtypes and the state of `FusedRAdam`, and without its rectification. With amsgrad,
    the maximum is that of the second moment before its bias correction, as in torch.

    Args:
        params: Parameters, named parameters or parameter groups.
        {options}
        flatten: See `FusedRAdam`.
        backend: See `FusedRAdam`.
        {settings}

    Raises:
        ValueError: A hyper-parameter is out of range, or the backend does not exist.
        RuntimeError: The named backend is unavailable, or cannot step with the options.
    """

    _options = ADAM

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        moments: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        flatten: bool = False,
        backend: str = "auto",
        max_grad_norm: float | None = None,
        error_if_nonfinite: bool = False,
        skip_nonfinite: bool = False,
        skip_above: float | None = None,
        track_update_norm: bool = False,
        per_parameter_norms: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        _check_tensors(lr, betas, foreach, capturable)
        self._construct(params, locals(), flatten, backend)

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        """As in torch.optim.Adam: completes states, and appends to each list."""
        lists = {"exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs, "step": state_steps}
        lists["max_exp_avg_sq"] = max_exp_avg_sqs
        return collect(self, group, params_with_grad, grads, **lists)


@documents()
class FusedAdamW(FusedAdam):
    """AdamW in one pass over parameters, gradients and moments.

    A drop-in replacement for `torch.optim.AdamW`: `FusedAdam` with decoupled weight
    decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101).

    Args:
        params: Parameters, named parameters or parameter groups.
        {options}
        flatten: See `FusedRAdam`.
        backend: See `FusedRAdam`.
        {settings}

    Raises:
        ValueError: A hyper-parameter is out of range, or the backend does not exist.
        RuntimeError: The named backend is unavailable, or cannot step with the options.
    """

    _options = ADAMW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        moments: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        flatten: bool = False,
        backend: str = "auto",
        max_grad_norm: float | None = None,
        error_if_nonfinite: bool = False,
        skip_nonfinite: bool = False,
        skip_above: float | None = None,
        track_update_norm: bool = False,
        per_parameter_norms: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        values = {**locals(), "decoupled_weight_decay": True}
        _check_tensors(lr, betas, foreach, capturable)
        self._construct(params, values, flatten, backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
