"""FusedRAdam: torch.optim.RAdam in one pass."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import backends, hyperparameters, rectification
from .backends.extension import any_gradient, same_objects
from .capture import CapturedGroup, Captures
from .flat import FlatBuffers
from .hyperparameters import OWN_DEFAULTS, coefficient_arguments, option, planned_options
from .inputs import StepInputs
from .tensors import (
    MOMENTS,
    arithmetic_dtype,
    check_grad,
    check_param,
    check_state,
    counter_dtype,
    moment_names,
    new_states,
)

__all__ = ["FusedRAdam", "Rectification"]


class Rectification(NamedTuple):
    """Where a parameter group stands in the rectification (arXiv 1908.03265, section 4).

    Attributes:
        step: Steps taken: the most of any parameter in the group.
        rho_t: Length of the approximated simple moving average at that step.
        r_t: Rectification term; 0 where the step was not rectified, 1 with ``rectify=False``.
        rectified: Whether the step was adaptive.
        step_size: Learning rate times r_t, or the plain one where the fallback stepped, or 0.
    """

    step: int
    rho_t: float
    r_t: float
    rectified: bool
    step_size: float


class _Plan(NamedTuple):
    """The launches of one group, and what they were made for."""

    params: list[Tensor]
    options: tuple[Any, ...]
    launches: list[backends.Launch]
    waiting: list[Tensor]  # parameters that have had no gradient yet
    counts_on_device: bool

    def is_for(self, group: dict[str, Any], is_scaled: bool) -> bool:
        return (
            self.options == planned_options(group)
            and (self.counts_on_device or not is_scaled)
            and same_objects(group["params"], self.params)
            and not any_gradient(self.waiting)
        )


# Named after the accelerator since torch 2.11.
_check_graph_capture: Callable[[Optimizer], None] = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", None
) or getattr(Optimizer, "_cuda_graph_capture_health_check")  # noqa: B009


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class FusedRAdam(Optimizer):
    r"""Rectified Adam in one pass over parameters, gradients and moments.

    A drop-in for :class:`torch.optim.RAdam`: its arguments in its order, its state keys, its
    state_dict in both directions. Every backend gives the same bits.

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
    memory order; complex numbers are two reals. float64 is updated in float64, the rest in float32.

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate, a number or a tensor of one element, which is read at every step.
        betas: Decay rates of the first and the second moment, each in [0, 1).
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        decoupled_weight_decay: Multiply the parameter by ``1 - lr * weight_decay`` (as AdamW)
            instead of adding ``weight_decay`` times the parameter to the gradient (L2).
        foreach: Accepted for torch's sake and ignored.
        maximize: Ascend instead of descend.
        capturable: Count the steps on the device, so that a CUDA graph can capture a step. What
            may change between replays is the gradients and, as a tensor on the device, the
            learning rate; while the graph exists, changing anything that it has baked in raises.
        differentiable: Let autograd record the step; runs the eager backend.
        amsgrad: Divide by the root of the running maximum of the second moment (arXiv 1904.09237),
            kept as ``max_exp_avg_sq``.
        rectify: Multiply the adaptive rate by r_t. False makes every step adaptive: with
            ``eps_after_bias_correction=True`` that is Adam, AdamW or AMSGrad.
        rectify_threshold: A step is rectified where rho_t is greater; at least 4, with
            ``exact_rectification`` at least 2.
        exact_rectification: Take r_t from the exact variance of the adaptive rate (Theorem 1), not
            from its first-order approximation, which is 3.3 times too high at ``rho_t = 5``: the
            early rectified steps are larger, and with a lower threshold they begin earlier.
        degenerated_to_sgd: Step by the bias-corrected momentum where not rectified; False takes no
            step there.
        eps_after_bias_correction: Add eps to the root of the bias-corrected second moment.
        absolute_weight_decay: With decoupled decay, multiply by ``1 - weight_decay``.
        decay_skipped_steps: Apply decoupled decay also where no step is taken.
        moments_in_param_dtype: Keep the moments of bfloat16 and float16 parameters in their dtype,
            as torch does. By default they are float32: at ``betas[1]=0.999`` a bfloat16 second
            moment can no longer decay. :meth:`load_state_dict` keeps the dtype they were saved in.
        flatten: Move the parameters of each group, and their moments, into contiguous buffers
            (:class:`FlatBuffers`, kept as ``flat_buffers``). Gradients stay where autograd puts
            them, unless ``flat_buffers[i].flatten_gradients()`` is called; a step is then one range
            for all parameters with the same step count, where the host counts.
        backend: "auto", or the name of the one that has to serve: "cuda", "triton", "cpu" or
            "eager".

    State (under torch's keys, for each parameter): ``step``, a 0-d float32 tensor on the CPU
    (float64 where that is the default dtype), on the parameter's device if capturable or once a
    gradient scaler has stepped it on a GPU; ``exp_avg``, ``exp_avg_sq`` and with amsgrad
    ``max_exp_avg_sq``, tensors of the parameter's shape and device. Counters, and the moments of
    small parameters, are views of common tensors.

    With :class:`torch.amp.GradScaler` the step itself divides by the scale, reading the gradients
    only, and on overflow moves nothing, without waiting for the device.

    Raises:
        ValueError: A hyper-parameter is out of range, or there is no such backend.
        TypeError: A parameter has an unsupported dtype.
        RuntimeError: The backend asked for cannot serve; the message says why.

    Warns:
        UserWarning: ``betas[1]`` is so small that no step is ever rectified.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = FusedRAdam(model.parameters(), lr=1e-3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    backend: str
    flatten: bool
    flat_buffers: list[FlatBuffers]

    # What torch.amp.GradScaler looks for before it sets grad_scale and found_inf.
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
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        own = {
            "amsgrad": amsgrad,
            "rectify": rectify,
            "rectify_threshold": rectify_threshold,
            "exact_rectification": exact_rectification,
            "degenerated_to_sgd": degenerated_to_sgd,
            "eps_after_bias_correction": eps_after_bias_correction,
            "absolute_weight_decay": absolute_weight_decay,
            "decay_skipped_steps": decay_skipped_steps,
            "moments_in_param_dtype": moments_in_param_dtype,
        }
        defaults |= {name: value for name, value in own.items() if value != OWN_DEFAULTS[name]}
        backends.check_name(backend)
        hyperparameters.check(defaults)  # also where there is no group yet
        self.backend = backend
        self.flatten = flatten
        self.flat_buffers = []
        self._reset()
        super().__init__(params, defaults)

    _loading: StateDict | None = None

    def _forget_plans(self) -> None:
        self._plans: list[_Plan] = []
        self._planned_states: list[dict[str, Any]] = []

    def _reset(self) -> None:
        """Make anew what neither a copy nor a pickle takes along."""
        self._forget_plans()
        self._lock = threading.Lock()  # one thread steps at a time
        self._captures = Captures()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as :meth:`torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: ``params`` and the options in which it differs from the defaults.

        Raises:
            ValueError: An option is out of range.
            TypeError: A parameter has an unsupported dtype.
            RuntimeError: The backend asked for cannot step a parameter, or a CUDA graph exists that
                a step was captured into.
        """
        self._captures.forbid("a parameter group was added")
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        group = self.param_groups[index]
        try:
            for name, default in OWN_DEFAULTS.items():
                if name not in self.defaults and group.get(name, default) == default:
                    group.pop(name, None)
            hyperparameters.check(group)
            for param, name in self._named(index):
                check_param(param, name)
                self._select(group, param, name)
            if self.flatten:
                self._flatten(index)
        except BaseException:
            self.param_groups.pop()
            raise
        hyperparameters.warn_if_never_rectified(group)

    def _select(self, group: dict[str, Any], param: Tensor, name: str) -> backends.Backend:
        return backends.select(
            self.backend, param, name, group["differentiable"], group["capturable"]
        )

    def _flatten(self, index: int) -> None:
        named = [(name, param) for param, name in self._named(index)]
        self.flat_buffers.append(FlatBuffers(named))

    def _named(self, index: int) -> Iterable[tuple[Tensor, str]]:
        """Every parameter of a group with the name that errors call it by."""
        group = self.param_groups[index]
        names = [f"parameter {name!r}" for name in group.get("param_names", ())] or [
            f"parameter {i} of group {index}" for i in range(len(group["params"]))
        ]
        return zip(group["params"], names, strict=True)

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
        self._reset()
        for index, group in enumerate(self.param_groups):
            for name in ("maximize", "capturable", "differentiable", "decoupled_weight_decay"):
                group.setdefault(name, False)
            group.setdefault("foreach", None)
            # A loaded group that lacks an option of ours leaves it as it was.
            before = previous[index] if index < len(previous) else self.defaults
            for name in OWN_DEFAULTS:
                if name in before:
                    group.setdefault(name, before[name])
            for param in group["params"]:
                if self.state.get(param):
                    count = float(self.state[param]["step"])
                    device = param.device if group["capturable"] else torch.device("cpu")
                    step = torch.tensor(count, dtype=counter_dtype(), device=device)
                    self.state[param]["step"] = step
        if self._loading is not None:
            self._restore_moment_dtypes(self._loading)
        if flat_gradients is not None:
            # A copy: its parameters lie where copying has put them.
            self.flat_buffers = []
            for index, has_gradients in enumerate(flat_gradients):
                self._flatten(index)
                if has_gradients:
                    self.flat_buffers[index].flatten_gradients()

    def _restore_moment_dtypes(self, state_dict: StateDict) -> None:
        """Undo torch's cast of 16-bit parameters' moments to their parameter's dtype."""
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, saved_id in zip(group["params"], saved_group["params"], strict=True):
                saved = state_dict["state"].get(saved_id, {})
                if param.dtype.itemsize > 2:
                    continue
                for key in MOMENTS:
                    if key in saved:
                        dtype = saved[key].dtype
                        kept = dtype if dtype == param.dtype else arithmetic_dtype(param)
                        self.state[param][key] = saved[key].to(device=param.device, dtype=kept)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state_dict of this optimizer or of :class:`torch.optim.RAdam`.

        The moments of bfloat16 and float16 parameters keep the dtype they were saved in; all
        others take their parameter's, as torch has it. Options of ours that a group of the
        state_dict lacks stay as they are.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            RuntimeError: A CUDA graph exists that a step was captured into.
        """
        self._captures.forbid("a state_dict was loaded")

        def keep(_: Optimizer, final: StateDict) -> None:
            self._loading = final

        # Registered last, it sees what the user's own hooks have made of the state_dict.
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as :meth:`torch.optim.Optimizer.zero_grad`.

        Args:
            set_to_none: Set them to None instead of to zero. Gradients in flat buffers are zeroed
                either way, as that keeps them there.
        """
        if not (self.flat_buffers and all(flat.has_gradients for flat in self.flat_buffers)):
            super().zero_grad(set_to_none)
        for flat in self.flat_buffers:
            flat.zero_gradients()

    @property
    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """The scale and the verdict that a gradient scaler has left for the step that is due."""
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)

    def _replan(self) -> None:
        """Check every gradient and every state, then make new launches for every group."""
        self._captures.forbid("tensors or options of the optimizer have changed")
        if any(group["capturable"] for group in self.param_groups) and _is_capturing():
            raise RuntimeError(
                "the first step, and the first after a change, makes tensors that a replay would "
                "make anew: take one step before the capture"
            )
        for flat in self.flat_buffers:
            flat.check()
        for index, group in enumerate(self.param_groups):
            hyperparameters.check_own(group)
            for param, name in self._named(index):
                if param.grad is not None:
                    check_param(param, name)
                    check_grad(param, param.grad, name)
                    if self.state.get(param):
                        check_state(param, self.state[param], name)
                    self._select(group, param, name)
        self._forget_plans()
        self._plans = [self._plan(index) for index in range(len(self.param_groups))]
        self._planned_states = list(self.state.values())

    def _plan(self, index: int) -> _Plan:
        group = self.param_groups[index]
        amsgrad = option(group, "amsgrad")
        waiting, without_state = [], []
        by_backend: dict[backends.Backend, list[Tensor]] = {}
        for param, name in self._named(index):
            if not self.state.get(param):
                if param.grad is None:
                    waiting.append(param)
                    continue
                without_state.append(param)
            backend = self._select(group, param, name)
            by_backend.setdefault(backend, []).append(param)
        in_param_dtype = option(group, "moments_in_param_dtype")
        states = new_states(without_state, amsgrad, in_param_dtype)
        for param, state in zip(without_state, states, strict=True):
            self.state[param] |= state
        planned = [param for params in by_backend.values() for param in params]
        for param in planned:
            if amsgrad and "max_exp_avg_sq" not in self.state[param]:
                maximum = torch.zeros_like(self.state[param]["exp_avg_sq"])
                self.state[param]["max_exp_avg_sq"] = maximum
        flat = self.flat_buffers[index] if self.flatten else None
        if flat is not None:
            flat.take_over([(param, self.state[param]) for param in planned], moment_names(amsgrad))
        # A scaler's verdict stays on the device, so what it decides has to be counted there; the
        # counters stay there afterwards.
        counts_on_device = (
            group["capturable"]
            or self._scaling != (None, None)
            or any(self.state[param]["step"].device.type != "cpu" for param in planned)
        )
        setup = backends.Setup(amsgrad, counts_on_device, flat)
        launches = [
            launch
            for backend, params in by_backend.items()
            for launch in backend.launches(params, [self.state[p] for p in params], setup)
        ]
        options = planned_options(group)
        return _Plan(list(group["params"]), options, launches, waiting, counts_on_device)

    def _prepare(self) -> list[backends.Launch] | None:
        """What a step has to run; None where the plans no longer hold. Writes nothing."""
        if len(self._plans) != len(self.param_groups):
            return None
        if not same_objects(self.state, self._planned_states):
            return None
        scaling = self._scaling
        work = []
        for group, plan in zip(self.param_groups, self._plans, strict=True):
            if not plan.is_for(group, scaling != (None, None)):
                return None
            inputs = StepInputs(group, *scaling)
            for launch in plan.launches:
                if not launch.refresh(inputs):
                    return None
                work.append(launch)
        return work

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform a single optimization step.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: A gradient is sparse.
            ValueError: A gradient or a state differs from its parameter in device, shape or dtype.
                No parameter and no moment has changed then.
        """
        _check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock, torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    # A compiler could not follow tensors into the extension. torch.compiler.disable would import
    # one with this module, which takes seconds and fails where triton is broken.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _step(self) -> None:
        try:
            work = self._prepare()
            if work is None:
                self._replan()
                work = self._prepare()
                if work is None:
                    raise RuntimeError("the tensors changed while the step was prepared")
        except BaseException:
            if not self._captures:  # which a new plan would part from their counters
                self._forget_plans()  # they hold gradients
            raise
        if self._captures:
            self._captures.check_gradients(self._have_gradients())
        graphs = [graph for graph in [launch.run() for launch in work] if graph is not None]
        if graphs:
            self._captures.add(graphs, work, self._have_gradients())
            for index, group in enumerate(self.param_groups):
                if not isinstance(group, CapturedGroup):
                    self.param_groups[index] = CapturedGroup(group, self._captures)

    def _have_gradients(self) -> list[bool]:
        return [p.grad is not None for group in self.param_groups for p in group["params"]]

    def rectification(self) -> list[Rectification]:
        """Where each parameter group stands, for loggers; one entry a group."""
        result = []
        for group in self.param_groups:
            states = [self.state[param] for param in group["params"] if self.state.get(param)]
            step = int(max((float(state["step"]) for state in states), default=0))
            arguments = coefficient_arguments(group)
            beta2, rho_t, r_t = arguments["betas"][1], 0.0, 0.0
            if step > 0:
                rho_t = rectification.rho(step, beta2)
                r_t = 1.0
                if arguments["rectify"]:
                    how = arguments["rectify_threshold"], arguments["exact_rectification"]
                    r_t = rectification.rectification(step, beta2, *how)
            falls_back = step > 0 and arguments["degenerated_to_sgd"]
            factor = r_t if r_t > 0 else float(falls_back)
            result.append(Rectification(step, rho_t, r_t, r_t > 0, float(arguments["lr"]) * factor))
        return result
