"""The machinery of the optimizers: construction, parameter groups, state_dict and step."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import backends
from .allocation import complete_states, move_counters, new
from .caller import warn_user
from .clipping import Clipping
from .dtensors import check_not_flat
from .faults import check_params
from .flat import FlatGroup, movable
from .formats import check_parameters
from .groups import name_of, params_of
from .loading import (
    check_state_dict,
    complete_options,
    rename_options,
    restore_loaded,
    warn_of_differences,
)
from .locks import lock
from .masters import Masters
from .norms import Norms
from .plan import Plan
from .scaling import ForOneStep
from .state import State
from .tensors import describe
from .tracing import check_graph_capture, leave_untraced
from .values import flag


class FusedOptimizer(Clipping, Masters, Optimizer):
    """An optimizer whose step is one pass over parameters, gradients and moments.

    A subclass declares its options, and calls `_construct`.
    """

    backend: str
    flatten: bool
    flat_buffers: list[FlatGroup]
    _lock: threading.Lock

    # If True, torch.amp.GradScaler unscales nothing, and sets the other two before a step.
    _step_supports_amp_scaling = False
    grad_scale = ForOneStep()
    found_inf = ForOneStep()

    def _construct(
        self, params: ParamsT, values: dict[str, Any], flatten: bool, backend: str
    ) -> None:
        """The constructor, after the subclass has named its arguments.

        Args:
            params: Parameters, named parameters or parameter groups.
            values: The options.
            flatten: Whether parameters and moments move into flat buffers.
            backend: Name of a backend, or "auto".
        """
        backends.check_name(backend)
        if error := flag("flatten")(flatten):
            raise error
        self._options.check(values)  # add_param_group checks only the values of groups
        if isinstance(params, torch.nn.Module):
            raise TypeError(
                f"params is the module {type(params).__name__}, expected its parameters: "
                "module.parameters()"
            )
        if not isinstance(params, Iterable):
            raise TypeError(f"params is {describe(params)}, expected an iterable of tensors")
        defaults = self._options.group_defaults(values)
        self._set(values)
        self.backend = backend
        self.flatten = flatten
        self.flat_buffers = []
        lock(self)
        self._count_on_device()
        self._forget_plan()
        Optimizer.__init__(self, params, defaults)
        self._declare_scaling()

    _loading: StateDict | None = None
    _warned: set[str]  # misspelled options

    def _declare_scaling(self) -> None:
        self._step_supports_amp_scaling = bool(self.defaults.get("fused"))

    def _forget_plan(self) -> None:
        """Start a new plan, which copies and pickles do not contain."""
        plan = self.__dict__.get("_plan")
        graph_launches = plan.graph_launches() if plan else ()
        warned = self.__dict__.setdefault("_warned", set())
        norms = self.__dict__.setdefault("_norms", Norms())
        self._plan = Plan(
            self.backend, self._options, self.flat_buffers, graph_launches, warned, norms
        )

    def __repr__(self) -> str:
        groups: str = super().__repr__().removesuffix(")")
        held = {"backend": self.backend, "flatten": self.flatten, **self._changed_settings()}
        return groups + "".join(f"{name}: {value}\n" for name, value in held.items()) + ")"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim.Optimizer.add_param_group` does.

        Args:
            param_group: ``params``, and the options that differ from the defaults.

        Raises:
            KeyError: The group has no parameters.
            TypeError: An option or a parameter has the wrong type.
            ValueError: An option is out of range.
            RuntimeError: The named backend cannot step with the options.

            After an error, the optimizer is as it was.

        Warns:
            UserWarning: A parameter is listed twice. A step updates it once.
        """
        count = len(self.param_groups)
        if isinstance(param_group, dict):
            rename_options(param_group)
            check_params(param_group, f"parameter group {count}")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                super().add_param_group(param_group)
            for warning in caught:
                text = str(warning.message)
                if "duplicate parameters" in text:
                    text += (
                        f". {type(self).__name__} steps such a parameter once per call; the "
                        "optimizers of torch.optim step it as often as it is listed"
                    )
                warn_user(text, warning.category)
            group = self.param_groups[count]
            self._options.drop_defaults(group, keep=self.defaults)
            self._options.check(group)
            self._check_no_settings(group, count)
            check_parameters(self.param_groups, count, self._options)
            backends.check_options(self.backend, group["differentiable"], group["capturable"])
            if self.flatten:
                self._flatten(count)
        except BaseException:
            del self.param_groups[count:]
            raise
        self._options.warn_of_misspelled(group, self._warned)
        self._options.warn_if_never_rectified(group)

    def _flatten(self, index: int) -> None:
        named = [
            (name_of(self.param_groups, (index, i)), param)
            for i, param in enumerate(params_of(self.param_groups[index]))
        ]
        for name, param in named:
            check_not_flat(param, name)
        flat = FlatGroup.of(movable(named))
        self.flat_buffers.append(flat)

    def _find_flat(self, param: Tensor) -> FlatGroup | None:
        return next((flat for flat in self.flat_buffers if flat.find(param)), None)

    def __getstate__(self) -> dict[str, Any]:
        flats = [
            [flat for param in params_of(group) if (flat := self._find_flat(param))]
            for group in self.param_groups
        ]
        return {
            **super().__getstate__(),
            **self._changed_settings(),
            "backend": self.backend,
            "flatten": self.flatten,
            "flat_gradients": [any(flat.has_gradients for flat in group) for group in flats],
        }

    def __copy__(self) -> "FusedOptimizer":
        # The copy steps the same parameters, in the same flat buffers.
        copied = type(self).__new__(type(self))
        copied.flat_buffers = self.flat_buffers
        state = self.__getstate__()
        del state["flat_gradients"]
        copied.__setstate__(state)
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        previous = self.__dict__.get("param_groups", [])
        flat_gradients = state.pop("flat_gradients", None)
        super().__setstate__(state)
        rename_options(self.defaults)
        self.__dict__.setdefault("backend", "auto")
        self.__dict__.setdefault("flatten", False)
        self.__dict__.setdefault("flat_buffers", [])
        if "_lock" not in self.__dict__:  # a copy
            lock(self)
        self._count_on_device()
        self._declare_scaling()
        for index, group in enumerate(self.param_groups):
            before = previous[index] if index < len(previous) else self.defaults
            complete_options(group, before, self._options, loaded=self._loading is not None)
            self._options.drop_defaults(group, keep=self.defaults)
        if self._loading is not None:
            restore_loaded(self.param_groups, self.state, self._loading, self._options)
        move_counters(self._counters())
        if flat_gradients is not None and self.flatten:
            # A copy has its own parameters, in new memory.
            self.flat_buffers = []
            for index, has_gradients in enumerate(flat_gradients):
                self._flatten(index)
                if has_gradients:
                    self.flat_buffers[index].flatten_gradients()
        self._forget_plan()

    def _counters(self) -> Iterator[tuple[State, torch.device, torch.dtype]]:
        for group in self.param_groups:
            for param in params_of(group):
                state = self.state.get(param)
                if state and "step" in state:
                    needs = new(param, state, group, self._options)
                    yield state, needs.counter_device, needs.counter_dtype

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state_dict of this optimizer or of its counterpart in torch.optim.

        Moments get the dtype that ``moments`` asks for, and masters keep theirs. A conversion that
        would round to 16 bits is an error. Options that the counterpart
        in torch.optim lacks keep their values if the state_dict lacks them. ``capturable`` and
        ``fused`` keep the values of the constructor, and step counters are loaded where these put
        them. All other options are those of the state_dict, as in torch.

        Args:
            state_dict: A result of `state_dict`.

        Raises:
            KeyError: A part, or a tensor of a state, is missing.
            TypeError: A part has the wrong type.
            ValueError: It is of another kind of optimizer, or has other groups or shapes; or an
                option or a step count is out of range.
            RuntimeError: Options exclude each other.

            After an error, the optimizer is as it was.

        Warns:
            UserWarning: An option that the counterpart in torch.optim lacks, AMSGrad for example,
                has another value in the state_dict. The message says which value holds.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is {describe(state_dict)}, expected a dict")

        def keep(_: Optimizer, final: StateDict) -> None:
            check_state_dict(final, self.param_groups, self._options)
            self._loading = final

        unchanged = self.__dict__.copy()
        before = [dict(group) for group in self.param_groups]
        # Registered last, the hook sees the state_dict after the user's hooks have changed it.
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
            if self._loading is not None:
                saved = [rename_options(dict(g)) for g in self._loading["param_groups"]]
                warn_of_differences(before, saved, self.param_groups, self._options)
        except BaseException:
            self.__dict__.update(unchanged)
            raise
        finally:
            handle.remove()
            self._loading = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as `torch.optim.Optimizer.zero_grad` does.

        Args:
            set_to_none: Set gradients to None instead of zero. Gradients in flat buffers are always
                set to zero, which keeps them in their buffers.
        """
        flats = [flat for flat in self.flat_buffers if flat.has_gradients]
        if not flats or any(
            not any(flat.find(param) for flat in flats)
            for group in self.param_groups
            for param in group["params"]
        ):
            super().zero_grad(set_to_none)
        for flat in flats:
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
            RuntimeError: A gradient is sparse, or the named backend cannot update a parameter.
            TypeError: A parameter with a gradient has an unsupported dtype, or an option, a
                parameter or a state has the wrong type.
            KeyError: A state lacks a tensor, or a group lacks an option.
            ValueError: An option is out of range; a gradient differs from its parameter in device
                or shape, or a state in device, shape or dtype; two parameters overlap in memory, a
                storage was freed, or a step count is negative, infinite or NaN. A gradient can have
                another dtype (``param.grad_dtype``): a step uses its values unrounded.

            After an error, all parameters and states have their old values.
        """
        # Only this step uses them, even if it raises.
        scaling = self.__dict__.pop("grad_scale", None), self.__dict__.pop("found_inf", None)
        check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock, torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step(*(scaling if self._step_supports_amp_scaling else (None, None)))
        return loss

    def _patch_step_function(self) -> None:
        """As in torch, but torch.compile runs the step with its hooks outside of its graphs."""
        super()._patch_step_function()
        leave_untraced(type(self))

    def _step(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        try:
            given = grad_scale, found_inf, self._norm_settings
            self._plan.step(self.param_groups, self.state, *given)
        except BaseException:
            self._plan.launches.release()
            self._forget_plan()
            raise

    def state_dict(self) -> StateDict:
        """The state of the optimizer as a dict, as `torch.optim.Optimizer.state_dict`.

        Parameters whose gradients lie in flat buffers have a state before their first step: torch's
        distributed checkpoints make one only where no gradient is set.
        """
        flats = [flat for flat in self.flat_buffers if flat.has_gradients]
        if flats:
            complete_states(
                [
                    new(param, self.state[param], group, self._options)
                    for group in self.param_groups
                    for param in params_of(group)
                    if param.grad is not None and any(flat.find(param) for flat in flats)
                ]
            )
        return super().state_dict()

    def backends(self) -> dict[str, list[str]]:
        """The backends that step the parameters as they are now.

        Returns:
            For each backend that steps any, the names of its parameters: of named parameters their
            names, of others ``"parameter 0 of group 0"``. Frozen parameters without a gradient are
            left out.

        Raises:
            RuntimeError: The named backend cannot update a parameter.
        """
        return self._plan.backends(self.param_groups, self.state)
