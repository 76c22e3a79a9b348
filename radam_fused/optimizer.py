"""FusedRAdam, the optimizer."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import rectification
from .base import FusedOptimizer
from .docstrings import documents
from .faults import find_fault
from .groups import name_of, params_of
from .init_group import collect
from .option_sets import RADAM
from .state import check_count, check_step

__all__ = ["FusedRAdam", "Rectification"]


class Rectification(NamedTuple):
    """The rectification of a parameter group's last step (arXiv 1908.03265, section 4).

    Attributes:
        step: Step count, the largest of the group's parameters.
        rho_t: Length of the approximated simple moving average at that step.
        r_t: Rectification term; 0 if the step was not rectified, 1 with ``rectify=False``.
        rectified: Whether the step was adaptive.
        step_size: Learning rate times r_t; the learning rate for a fallback step; 0 if the step was
            skipped.
    """

    step: int
    rho_t: float
    r_t: float
    rectified: bool
    step_size: float


@documents()
class FusedRAdam(FusedOptimizer):
    """Rectified Adam in one pass over parameters, gradients and moments.

    A drop-in replacement for `torch.optim.RAdam`, with the same arguments in the same order,
    the same state keys, and state_dicts that load in both directions. Every backend gives the same
    bits.

    The update is Algorithm 2 of Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond" (arXiv 1908.03265): with the moments m and v of the gradient g,

        rho_inf = 2 / (1 - beta2) - 1
        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
        r_t^2 = (rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)

    A step is rectified if rho_t exceeds the threshold; otherwise it is SGD with momentum:

        p = p - lr r_t (1 - beta2^t)^0.5 / (1 - beta1^t) m / (v^0.5 + eps)
        p = p - lr / (1 - beta1^t) m

    Parameters may be float64, float32, bfloat16, float16, complex128 or complex64, of any shape and
    memory order. A complex number is updated as two real numbers. float64 and complex128 are
    updated in float64, the others in float32.

    Args:
        params: Parameters, named parameters or parameter groups.
        {options}
        flatten: Move the parameters of each group, and their moments, into contiguous buffers.
            ``flat_buffers`` holds a `FlatGroup` per group. Gradients stay where autograd
            puts them, unless ``flat_buffers[i].flatten_gradients()`` is called.
        backend: "cuda", "triton", "cpu" or "eager"; "auto" chooses the first of them that supports
            a parameter.
        {settings}

    State of each parameter, with torch's keys:

    * ``step``: 0-d float32 tensor on the CPU (float64 if that is the default dtype). It is on the
      parameter's device if ``capturable`` or ``fused``.
    * ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``: tensors of the parameter's
      shape and device.

    Each state tensor has its own storage. The next step uses a state that was replaced, cleared or
    moved; the optimizer keeps no other reference to it.

    With `torch.amp.GradScaler` and ``fused=True``, the step divides by the scale without
    writing the gradients. After an overflow it changes nothing. On a device it does not wait for
    the scaler's flag. Without ``fused=True``, the scaler does this, as with torch.optim.RAdam.

    A parameter without a gradient is not looked at: it can have any dtype, layout and memory.

    Raises:
        ValueError: A hyper-parameter is out of range, or the backend does not exist.
        RuntimeError: The named backend is unavailable, or cannot step with the options.

    Warns:
        UserWarning: No step will be rectified, because ``betas[1]`` is too small.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = FusedRAdam(model.parameters(), lr=1e-3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    _options = RADAM

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        amsgrad: bool = False,
        rectify: bool = True,
        rectify_threshold: float = 5.0,
        exact_rectification: bool = False,
        degenerated_to_sgd: bool = True,
        eps_after_bias_correction: bool = False,
        absolute_weight_decay: bool = False,
        decay_skipped_steps: bool = True,
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
        self._construct(params, locals(), flatten, backend)

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        """As in torch.optim.RAdam: completes states, and appends to each list."""
        lists = {"exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs, "step": state_steps}
        return collect(self, group, params_with_grad, grads, **lists)

    def rectification(self) -> list[Rectification]:
        """The rectification of each group's last step, for loggers. Reads each device once.

        Returns:
            One `Rectification` per parameter group.

        Raises:
            TypeError: An option, a state or a step count has the wrong type.
            ValueError: An option or a step count is out of range.
        """
        fault = find_fault(self.param_groups, self.state, self._options)
        if fault is not None:
            raise fault
        result = []
        for group, step in zip(self.param_groups, self._last_steps(), strict=True):
            arguments = self._options.coefficient_arguments(group)
            beta2, rho_t, r_t = arguments["betas"][1], 0.0, 0.0
            if step > 0:
                rho_t = rectification.rho_t(step, beta2)
                r_t = 1.0
                if arguments["rectify"]:
                    how = arguments["rectify_threshold"], arguments["exact_rectification"]
                    r_t = rectification.r_t(step, beta2, *how)
            falls_back = step > 0 and arguments["degenerated_to_sgd"]
            factor = r_t if r_t > 0 else float(falls_back)
            result.append(
                Rectification(int(step), rho_t, r_t, r_t > 0, float(arguments["lr"]) * factor)
            )
        return result

    def _last_steps(self) -> list[float]:
        """The largest step count of each group."""
        last = [0.0] * len(self.param_groups)
        by_device: dict[torch.device, list[tuple[int, str, Tensor]]] = {}
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(params_of(group)):
                state, name = self.state.get(param, {}), name_of(self.param_groups, (index, i))
                if "step" not in state:
                    continue
                step = state["step"]
                check_step(step, name)
                if isinstance(step, Tensor):
                    by_device.setdefault(step.device, []).append((index, name, step))
                else:
                    last[index] = max(last[index], float(step))
        for found in by_device.values():
            counts = torch.stack([step.detach().reshape(()).double() for *_, step in found])
            for (index, name, _), count in zip(found, counts.tolist(), strict=True):
                check_count(count, name)
                last[index] = max(last[index], count)
        return last
