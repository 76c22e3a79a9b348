"""FusedRAdam, the optimizer: construction, parameter groups, state_dict and step."""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, overload
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import backends, options, rectification
from .flat import FlatGroup
from .options import DEFAULTS, OURS, coefficient_arguments
from .plan import Plan, name_of
from .state import CPU, check_param, move_counter, restore_loaded

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


# Only one thread at a time may step an optimizer: Python can switch threads while a step is
# planned, and a kernel runs without the GIL. A process forked during a step would inherit the lock.
_LOCKED: "WeakSet[FusedRAdam]" = WeakSet()


def _new_lock(optimizer: "FusedRAdam") -> threading.Lock:
    _LOCKED.add(optimizer)
    return threading.Lock()


def _unlock_all() -> None:
    for optimizer in _LOCKED:
        optimizer._lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_all)

# torch 2.11 renamed this method.
_check_graph_capture: Callable[[Optimizer], None] = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", None
) or getattr(Optimizer, "_cuda_graph_capture_health_check")  # noqa: B009


@options.documents(list(DEFAULTS))
class FusedRAdam(Optimizer):
    r"""Rectified Adam in one pass over parameters, gradients and moments.

    A drop-in replacement for :class:`torch.optim.RAdam`, with the same arguments in the same order,
    the same state keys, and state_dicts that load in both directions. Every backend gives the same
    bits.

    The update is Algorithm 2 of Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond" (arXiv 1908.03265): with the moments m and v of the gradient g,

    .. math::
        \rho_\infty = \frac{2}{1-\beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1-\beta_2^t}, \quad
        r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}

    .. math::
        \theta_t = \theta_{t-1} - \frac{\gamma}{1-\beta_1^t}
        \begin{cases}
        r_t \sqrt{1-\beta_2^t} \; m_t / (\sqrt{v_t} + \epsilon) & \rho_t > \text{threshold} \\
        m_t & \text{otherwise}
        \end{cases}

    Parameters may be float64, float32, bfloat16, float16, complex128 or complex64, of any shape and
    memory order. A complex number is updated as two real numbers. float64 and complex128 are
    updated in float64, the others in float32.

    Args:
        params: Parameters, named parameters or parameter groups.
        {options}
        flatten: Move the parameters of each group, and their moments, into contiguous buffers.
            ``flat_buffers`` holds a :class:`FlatGroup` per group. Gradients stay where autograd
            puts them, unless ``flat_buffers[i].flatten_gradients()`` is called.
        backend: "cuda", "triton", "cpu" or "eager"; "auto" chooses the first of them that supports
            a parameter.

    State of each parameter, with torch's keys:

    * ``step``: 0-d float32 tensor on the CPU (float64 if that is the default dtype). It is on the
      parameter's device if capturable, or after a gradient scaler's first step on a GPU.
    * ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``: tensors of the parameter's
      shape and device.

    Each state tensor has its own storage. The next step uses a state that was replaced, cleared or
    moved; the optimizer keeps no other reference to it.

    With :class:`torch.amp.GradScaler`, the step divides by the scale without writing the gradients.
    After an overflow it changes nothing. On a device it does not wait for the scaler's flag.

    Raises:
        ValueError: A hyper-parameter is out of range, or the backend does not exist.
        TypeError: A parameter has an unsupported dtype.
        RuntimeError: The named backend cannot update the parameters; the message says why.

    Warns:
        UserWarning: No step will be rectified, because ``betas[1]`` is too small.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = FusedRAdam(model.parameters(), lr=1e-3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    backend: str
    flatten: bool
    flat_buffers: list[FlatGroup]

    # With this, torch.amp.GradScaler sets grad_scale and found_inf instead of unscaling gradients.
    _step_supports_amp_scaling = True

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
        amsgrad: bool = False,
        rectify: bool = True,
        rectify_threshold: float = 5.0,
        exact_rectification: bool = False,
        degenerated_to_sgd: bool = True,
        eps_after_bias_correction: bool = False,
        absolute_weight_decay: bool = False,
        decay_skipped_steps: bool = True,
        moments_in_param_dtype: bool = False,
        flatten: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = options.group_defaults(locals())
        backends.check_name(backend)
        options.check(defaults)  # add_param_group checks only the values of groups
        self.backend = backend
        self.flatten = flatten
        self.flat_buffers = []
        self._lock = _new_lock(self)
        self._forget_plan()
        super().__init__(params, defaults)

    _loading: StateDict | None = None

    def _forget_plan(self) -> None:
        """Start a new plan, which copies and pickles do not contain."""
        plan = self.__dict__.get("_plan")
        graph_launches = plan.graph_launches() if plan else ()
        self._plan = Plan(self.backend, self.flat_buffers, graph_launches)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as :meth:`torch.optim.Optimizer.add_param_group` does.

        Args:
            param_group: ``params``, and the options that differ from the defaults.

        Raises:
            ValueError: An option is out of range.
            TypeError: A parameter has an unsupported dtype.
            RuntimeError: The named backend cannot update a parameter.
        """
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        group = self.param_groups[index]
        try:
            for name in OURS:
                if name not in self.defaults and options.get(group, name) == DEFAULTS[name]:
                    group.pop(name, None)
            options.check(group)
            for i, param in enumerate(group["params"]):
                name = name_of(self.param_groups, (index, i))
                check_param(param, name)
                how = group["differentiable"], group["capturable"]
                backends.select(self.backend, param, name, *how)
            if self.flatten:
                self._flatten(index)
        except BaseException:
            self.param_groups.pop()
            raise
        options.warn_if_never_rectified(group)

    def _flatten(self, index: int) -> None:
        named = [
            (name_of(self.param_groups, (index, i)), param)
            for i, param in enumerate(self.param_groups[index]["params"])
        ]
        self.flat_buffers.append(FlatGroup(named))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "backend": self.backend,
            "flatten": self.flatten,
            "flat_gradients": [flat.has_gradients for flat in self.flat_buffers],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        previous = self.__dict__.get("param_groups", [])
        flat_gradients = state.pop("flat_gradients", None)
        super().__setstate__(state)
        self.__dict__.setdefault("backend", "auto")
        self.__dict__.setdefault("flatten", False)
        self.__dict__.setdefault("flat_buffers", [])
        if "_lock" not in self.__dict__:  # a copy
            self._lock = _new_lock(self)
        for index, group in enumerate(self.param_groups):
            for name, default in DEFAULTS.items():
                if name not in OURS:
                    group.setdefault(name, default)
            # An option that torch.optim.RAdam lacks keeps its value if the loaded group lacks it.
            before = previous[index] if index < len(previous) else self.defaults
            for name in OURS:
                if name in before:
                    group.setdefault(name, before[name])
        if self._loading is not None:
            restore_loaded(self.param_groups, self.state, self._loading)
        for group in self.param_groups:
            for param in group["params"]:
                if self.state.get(param):
                    device = param.device if group["capturable"] else CPU
                    move_counter(self.state[param], device)
        if flat_gradients is not None:
            # A copy has its own parameters, in new memory.
            self.flat_buffers = []
            for index, has_gradients in enumerate(flat_gradients):
                self._flatten(index)
                if has_gradients:
                    self.flat_buffers[index].flatten_gradients()
        self._forget_plan()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state_dict of this optimizer or of :class:`torch.optim.RAdam`.

        The moments of bfloat16 and float16 parameters keep the dtype that they were saved in; other
        moments are cast to the dtype of their parameter, as in torch. Options that
        torch.optim.RAdam lacks keep their values if the state_dict lacks them.

        Args:
            state_dict: A result of :meth:`state_dict`.
        """

        def keep(_: Optimizer, final: StateDict) -> None:
            self._loading = final

        # Registered last, the hook sees the state_dict after the user's hooks have changed it.
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as :meth:`torch.optim.Optimizer.zero_grad` does.

        Args:
            set_to_none: Set gradients to None instead of zero. Gradients in flat buffers are always
                set to zero, which keeps them in their buffers.
        """
        if not (self.flat_buffers and all(flat.has_gradients for flat in self.flat_buffers)):
            super().zero_grad(set_to_none)
        for flat in self.flat_buffers:
            flat.zero_gradients()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform a single optimization step.

        Args:
            closure: A closure that reevaluates the model and returns the loss.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            RuntimeError: A gradient is sparse.
            ValueError: A gradient or a state differs from its parameter in device, shape or dtype.

            After an error, all parameters and moments have their old values.
        """
        _check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock, torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    # torch.compile cannot trace the extension. torch.compiler.disable would import torch._dynamo
    # with this module, which takes seconds and fails if triton is broken.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _step(self) -> None:
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        try:
            self._plan.step(self.param_groups, self.state, scale, found_inf)
        except BaseException:
            self._plan.launches.release()
            self._forget_plan()
            raise

    def rectification(self) -> list[Rectification]:
        """The rectification of each group's last step, for loggers.

        Returns:
            One :class:`Rectification` per parameter group.
        """
        result = []
        for group in self.param_groups:
            states = [self.state[param] for param in group["params"] if self.state.get(param)]
            step = int(max((float(state["step"]) for state in states), default=0))
            arguments = coefficient_arguments(group)
            beta2, rho_t, r_t = arguments["betas"][1], 0.0, 0.0
            if step > 0:
                rho_t = rectification.rho_t(step, beta2)
                r_t = 1.0
                if arguments["rectify"]:
                    how = arguments["rectify_threshold"], arguments["exact_rectification"]
                    r_t = rectification.r_t(step, beta2, *how)
            falls_back = step > 0 and arguments["degenerated_to_sgd"]
            factor = r_t if r_t > 0 else float(falls_back)
            result.append(Rectification(step, rho_t, r_t, r_t > 0, float(arguments["lr"]) * factor))
        return result
