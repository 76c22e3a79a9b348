"""FusedRAdam: torch.optim.RAdam in one pass."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, overload
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import backends, options, rectification
from .extension import _C
from .flat import FlatBuffer, FlatBuffers, Slot
from .options import DEFAULTS, OURS, coefficient_arguments
from .state import (
    CPU,
    MOMENTS,
    New,
    State,
    add_counters,
    arithmetic_dtype,
    check_grad,
    check_param,
    check_state,
    complete_states,
    counter_dtype,
    fields,
    has_own_memory,
    place_counter,
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


# One thread steps an optimizer at a time: planning can be interrupted between any two lines, and a
# kernel runs without Python's lock. A process that is forked meanwhile has nobody to unlock it.
_LOCKED: "WeakSet[FusedRAdam]" = WeakSet()


def _new_lock(optimizer: "FusedRAdam") -> threading.Lock:
    _LOCKED.add(optimizer)
    return threading.Lock()


def _unlock_all() -> None:
    for optimizer in _LOCKED:
        optimizer._lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_all)

# Named after the accelerator since torch 2.11.
_check_graph_capture: Callable[[Optimizer], None] = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", None
) or getattr(Optimizer, "_cuda_graph_capture_health_check")  # noqa: B009


@options.documents(list(DEFAULTS))
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
        {options}
        flatten: Move the parameters of each group, and their moments, into contiguous buffers
            (:class:`FlatBuffers`, kept as ``flat_buffers``). Gradients stay where autograd puts
            them, unless ``flat_buffers[i].flatten_gradients()`` is called.
        backend: "cuda", "triton", "cpu" or "eager", or "auto" for the first of them that can step
            the parameters.

    State (under torch's keys, for each parameter): ``step``, a 0-d float32 tensor on the CPU
    (float64 where that is the default dtype), on the parameter's device if capturable or once a
    gradient scaler has stepped it on a GPU; ``exp_avg``, ``exp_avg_sq`` and with amsgrad
    ``max_exp_avg_sq``, tensors of the parameter's shape and device. Each has a storage of its own,
    and a step keeps none of them alive: a state that is replaced, cleared or moved is followed.

    With :class:`torch.amp.GradScaler` the step itself divides by the scale, reading the gradients
    only, and on overflow moves nothing, without waiting for the device.

    Raises:
        ValueError: A hyper-parameter is out of range, or there is no such backend.
        TypeError: A parameter has an unsupported dtype.
        RuntimeError: The named backend cannot step the parameters; the message says why.

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
        defaults = options.group_defaults(locals())
        backends.check_name(backend)
        options.check(defaults)  # also where there is no group yet
        self.backend = backend
        self.flatten = flatten
        self.flat_buffers = []
        self._lock = _new_lock(self)
        self._forget_plan()
        super().__init__(params, defaults)

    _loading: StateDict | None = None

    def _forget_plan(self) -> None:
        """Recreate what is neither copied nor pickled; the next step plans every parameter."""
        # Replays of a captured graph use memory of the launches that were captured.
        launches = self.__dict__.get("_launches", ())
        self._replayed = self.__dict__.get("_replayed", []) + [
            launch for launch in launches if launch.is_replayed
        ]
        self._launches = backends.Launches()
        self._waiting: Any = None  # places that no launch steps; None: nothing is planned
        self._numbers: Any = None  # the groups' options as numbers
        self._planned: list[tuple[Any, ...]] = []
        self._planned_for_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as :meth:`torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: ``params`` and the options in which it differs from the defaults.

        Raises:
            ValueError: An option is out of range.
            TypeError: A parameter has an unsupported dtype.
            RuntimeError: The named backend cannot step a parameter.
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
                name = self._name((index, i))
                check_param(param, name)
                self._select(group, param, name)
            if self.flatten:
                self._flatten(index)
        except BaseException:
            self.param_groups.pop()
            raise
        options.warn_if_never_rectified(group)

    def _select(self, group: dict[str, Any], param: Tensor, name: str) -> backends.Backend:
        return backends.select(
            self.backend, param, name, group["differentiable"], group["capturable"]
        )

    def _flatten(self, index: int) -> None:
        params = self.param_groups[index]["params"]
        named = [(self._name((index, i)), param) for i, param in enumerate(params)]
        self.flat_buffers.append(FlatBuffers(named))

    def _name(self, place: backends.Place) -> str:
        """What errors call a parameter."""
        index, i = place
        names = self.param_groups[index].get("param_names", ())
        return f"parameter {names[i]!r}" if i < len(names) else f"parameter {i} of group {index}"

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
        self._forget_plan()
        for index, group in enumerate(self.param_groups):
            for name, default in DEFAULTS.items():
                if name not in OURS:
                    group.setdefault(name, default)
            # A loaded group that lacks an option of ours leaves it as it was.
            before = previous[index] if index < len(previous) else self.defaults
            for name in OURS:
                if name in before:
                    group.setdefault(name, before[name])
        if self._loading is not None:
            self._restore(self._loading)
        for group in self.param_groups:
            for param in group["params"]:
                if self.state.get(param):
                    device = param.device if group["capturable"] else CPU
                    place_counter(self.state[param], device)
        if flat_gradients is not None:
            # A copy: its parameters lie where copying has put them.
            self.flat_buffers = []
            for index, has_gradients in enumerate(flat_gradients):
                self._flatten(index)
                if has_gradients:
                    self.flat_buffers[index].flatten_gradients()

    def _restore(self, state_dict: StateDict) -> None:
        """Undo two things that torch does to a loaded state.

        It casts the moments of 16-bit parameters to their parameter's dtype, and it leaves the step
        counts of the state_dict in place, which the optimizer they came from goes on counting.
        """
        shared = []
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, saved_id in zip(group["params"], saved_group["params"], strict=True):
                saved = state_dict["state"].get(saved_id, {})
                state = self.state.get(param, {})
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

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state_dict of this optimizer or of :class:`torch.optim.RAdam`.

        The moments of bfloat16 and float16 parameters keep the dtype they were saved in; all
        others take their parameter's, as torch has it. Options of ours that a group of the
        state_dict lacks stay as they are.

        Args:
            state_dict: What :meth:`state_dict` returned.
        """

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

    def _plan_all(self, scaled: bool) -> None:
        """Plan every parameter that has a gradient, in new launches."""
        self._forget_plan()
        self._planned_for_scaling = scaled
        groups = self.param_groups
        for flat in self.flat_buffers:
            flat.check()
        for group in groups:
            options.check(group)
        self._planned = [options.planned(group) for group in groups]
        self._numbers = backends.new_numbers()
        if _C is None:  # eager only, and every step plans
            places = [(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))]
            self._plan([(g, i) for g, i in places if groups[g]["params"][i].grad is not None])
            return
        self._numbers.read(groups)
        waiting = _C.Waiting(groups)
        self._plan(waiting.take(groups))
        self._waiting = waiting

    def _plan(self, places: Sequence[backends.Place]) -> None:
        """Check the parameters at some places, make their states, and add them to launches."""
        found = []
        chosen: dict[tuple[Any, ...], backends.Backend] = {}
        names = [tuple(field.name for field in fields(group)) for group in self.param_groups]
        for place in places:
            group = self.param_groups[place[0]]
            param, name = group["params"][place[1]], self._name(place)
            grad, state = param.grad, self.state.get(param)
            if grad is None:
                raise RuntimeError(f"grad of {name} changed while the step was prepared")
            check_param(param, name)
            check_grad(param, grad, name)
            if state:
                check_state(param, state, name)
            kind = type(param), param.device, group["differentiable"], group["capturable"]
            if kind not in chosen:
                chosen[kind] = self._select(group, param, name)
            backend = self._addressing(chosen[kind], (grad, *(state or {}).values()), name)
            found.append((place, group, param, grad, state or {}, backend))
        if any(group["capturable"] for _, group, *_ in found) and backends.is_capturing():
            raise RuntimeError(
                "cannot capture this step: it allocates state. Run one step after any change, then "
                "capture"
            )
        counted_there = [
            backend.supports_capturable and self._counts_on_device(group, state)
            for _, group, _, _, state, backend in found
        ]
        complete_states(
            [
                New(param, state, group, names[place[0]], param.device if there else CPU)
                for (place, group, param, _, state, _), there in zip(
                    found, counted_there, strict=True
                )
            ]
        )
        for (place, _, param, grad, state, backend), there in zip(
            found, counted_there, strict=True
        ):
            moments = [name for name in names[place[0]] if name in MOMENTS]
            slot = None
            if self.flatten:
                buffer, slot = self._flat_place(place, param)
                buffer.take_over(slot, state, moments)
            self._launches.add(place, param, grad, state, moments, backend, there, slot)
        # Last, so that an error leaves no new state behind.
        for _, _, param, _, state, _ in found:
            if self.state.get(param) is not state:
                self.state[param].update(state)

    def _addressing(
        self, backend: backends.Backend, tensors: Iterable[Any], name: str
    ) -> backends.Backend:
        """The backend, or eager for tensors that keep their memory in others."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not has_own_memory(tensor):
                if backend.name != "eager" and self.backend != "auto":
                    raise RuntimeError(
                        f"backend={backend.name!r} cannot step {name}: its gradient or state has a "
                        f"{type(tensor).__name__}, which keeps its memory in other tensors"
                    )
                return backends.BACKENDS["eager"]
        return backend

    def _flat_place(self, place: backends.Place, param: Tensor) -> tuple[FlatBuffer, Slot]:
        for flat in self.flat_buffers:
            if (found := flat.find(param)) is not None:
                return found
        raise ValueError(
            f"{self._name(place)} lies in no flat buffer: it was put into its group after the "
            "buffers were made"
        )

    def _counts_on_device(self, group: dict[str, Any], state: State) -> bool:
        """Whether a backend that can count a parameter's steps on its device is to do so."""
        step = state.get("step")
        return (
            group["capturable"]
            # The flag of a scaler stays on the device, so a step that it skips is counted there;
            # the counters stay there afterwards.
            or self._planned_for_scaling
            or (isinstance(step, Tensor) and step.device.type != "cpu")
        )

    def _read(self, scaled: bool) -> bool:
        """Read what the step works on; False where the launches do not fit it (any more)."""
        if self._waiting is None or (scaled and not self._planned_for_scaling):
            return False
        groups = self.param_groups
        for index in self._numbers.read(groups):
            options.check(groups[index])
            planned = self._planned[index] if index < len(self._planned) else None
            if planned != options.planned(groups[index]):
                return False
        late = self._waiting.take(groups)
        if late:
            self._plan(late)
        return late is not None and self._launches.read(groups, self.state)

    def _prepare(self) -> backends.Step:
        """Read what the step works on, planning first where that has changed.

        Writes nothing but new states.
        """
        scaling = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaled = scaling != (None, None)
        if not self._read(scaled):
            self._plan_all(scaled or self._planned_for_scaling)
            if not self._launches.read(self.param_groups, self.state):
                place, tensor = self._launches.misfit()
                raise RuntimeError(
                    f"{tensor} of {self._name(place)} changed while the step was prepared"
                )
        return backends.Step(self.param_groups, self._numbers, *scaling, backends.is_capturing())

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
            step = self._prepare()  # which may replace the launches
            self._launches.run(step)
        except BaseException:
            self._launches.release()
            self._forget_plan()
            raise
        if self._numbers is not None:
            self._numbers.release()

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
