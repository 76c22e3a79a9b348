"""The eager backend: the update in PyTorch operations, for any device, differentiable."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..conversions import set_value, value_of
from ..dtensors import are_placed_alike, is_dtensor, local
from ..elements import Elements
from ..flat import Slot
from ..groups import Groups, Place, name_of, params_of
from ..overlap import extent
from ..rectification import Coefficients, Update, coefficients
from ..rounding import parameter_key, random_bits, round_stochastically, step_key
from ..state import (
    MASTERS,
    MOMENTS,
    State,
    arithmetic_dtype,
    check_count,
    check_grad,
    check_param,
    check_state,
)
from ..sums import sum_squares
from ..tensors import has_own_memory, is_dense
from .interface import Kind, Reducer
from .step import Step

# Below it, the residual of a float64 root would underflow; scaled by _SCALE, nothing overflows.
_TINY = 2.0**-900
_SCALE = 2.0**200


def sqrt_rn(x: Tensor) -> Tensor:
    """Square root rounded to nearest even, differentiable.

    ``torch.sqrt`` rounds correctly except on the CPU, where about 1 % of the roots (from MKL) have
    an error of one unit in the last place. On the CPU, a float32 root is rounded from a float64
    root, which has more than twice the digits and is never near a tie. A float64 root gets one
    Newton step with its exact residual (T. J. Dekker, "A floating-point technique for extending the
    available precision", 1971, section 5).

    Args:
        x: Float32 or float64 of any shape.
    """
    if x.device.type != "cpu":
        return x.sqrt()
    if x.dtype == torch.float32:
        return x.double().sqrt().float()
    rough = x.sqrt()
    with torch.no_grad():
        tiny = x < _TINY
        scaled = torch.where(tiny, x * _SCALE, x)
        s = torch.where(tiny, rough * _SCALE**0.5, rough)
        split = s * 134217729.0  # 2^27 + 1
        high = split - (split - s)
        low = s - high
        square = s * s
        error = ((high * high - square) + (high * low) * 2.0) + low * low
        correction = ((scaled - square) - error) / (s + s)
        corrected = s + correction
        corrected = torch.where(tiny, corrected * _SCALE**-0.5, corrected)
        # Zeros, infinities and NaNs are exact already and have no finite residual.
        step = torch.where(correction.isfinite(), corrected - rough, 0.0)
    return rough + step


def norms_of(square_sums: Tensor, scale: Tensor | float) -> Tensor:
    """Norms from sums of squares of what was multiplied by a scale, as `rectification.clip`."""
    return sqrt_rn(square_sums) / scale


@lru_cache(maxsize=16)  # a schedule can change the weights
def _weights(w: float, dtype: torch.dtype) -> tuple[float, float, float]:
    """The factors of a moment with weight w, rounded to the arithmetic type.

    A moment becomes old + (new - old) w, whose weights sum to 1 exactly. For w above 1/2, where
    that difference would lose a small new value, it becomes old (1 - w) + new w; 1 - w is exact
    there. Both are old keep + (new - old drop) w, without a branch.
    """
    w = torch.tensor(w, dtype=dtype, device="cpu").item()
    return (1.0 - w, 0.0, w) if w > 0.5 else (1.0, 1.0, w)


def update(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Tensor | None, c: Coefficients
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of Rectified Adam (arXiv 1908.03265, Algorithm 2).

    Each operation is rounded separately. All tensors have one shape and the dtype of the update.

    Args:
        p: The parameter.
        g: Its gradient.
        m: First moment.
        v: Second moment.
        s: Running maximum of the second moment, or None without amsgrad.
        c: The coefficients of the step.

    Returns:
        The new parameter, moments and running maximum.
    """
    g = g * c.grad_mul
    if c.l2 != 0:
        g = g + p * c.l2
    p = p * c.decay
    keep, drop, w = _weights(c.one_minus_beta1, p.dtype)
    m = m * keep + (g - m * drop) * w
    keep, drop, w = _weights(c.one_minus_beta2, p.dtype)
    # g w comes first: g g would overflow earlier.
    v = v * keep + (g * (g * w) - v * (drop * w))
    if s is not None:
        s = torch.maximum(s, v)
    if c.update is Update.RECTIFIED:
        p = p - (m * c.step_size) / (sqrt_rn(v if s is None else s) + c.eps)
    elif c.update is Update.MOMENTUM:
        p = p - m * c.step_size
    return p, m, v, s


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def step_(
    param: Tensor,
    grad: Tensor,
    state: State,
    c: Coefficients,
    draws: Collection[str] = (),
    random: Tensor | None = None,
) -> None:
    """Update a parameter and its state, as they are stored, in place.

    Args:
        param: The parameter.
        grad: Its gradient, of the same shape; it is only read.
        state: The tensors of its state that the step uses, without the counter.
        c: The coefficients of the step.
        draws: Names of the tensors that are rounded stochastically.
        random: Their random bits, see `rounding.random_bits`.
    """
    param, grad = _as_real(param), _as_real(grad)
    stored = {key: _as_real(tensor) for key, tensor in state.items() if key in MOMENTS}
    dtype = arithmetic_dtype(param)
    # autograd keeps operands, which must not be the tensors that the step writes.
    copies = torch.is_grad_enabled()
    has_master = any(key in state for key in MASTERS)
    p = value_of(param, state) if has_master else param.to(dtype, copy=copies)
    m, v, *maximum = (tensor.to(dtype, copy=copies) for tensor in stored.values())
    p, m, v, s = update(p, grad.to(dtype), m, v, maximum[0] if maximum else None, c)
    if random is not None and "exp_avg_sq" in draws:
        v = round_stochastically(v, random & 0xFFFF)
    for key, value in zip(MOMENTS, (m, v, s), strict=True):
        if value is not None:
            stored[key].copy_(value)
    if random is not None and "param" in draws:
        p = round_stochastically(p, random >> 16)
    if has_master:
        set_value(param, state, p)
    else:
        param.copy_(p)


class EagerLaunch:
    """Updates its parameters one after the other.

    Args:
        kind: The common properties of its parameters.
    """

    is_atomic = False
    is_replayed = False
    reducer: Reducer | None = None

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._rows: list[tuple[Place, Slot | None, Elements | None]] = []
        self._misfit: tuple[Place, str] = (0, 0), ""
        self._addresses: list[int] = []
        self._has_moved = False
        self.release()

    def release(self) -> None:
        """See Launch.release."""
        self._found: list[tuple[Place, Tensor, Tensor, State]] = []
        self._elements: list[Elements | None] = []  # of each
        self._random_keys: list[int] = []
        self._misplaced: list[int] = []  # indices in it
        self._coefficients: list[Coefficients] = []
        self._tracked: tuple[Sequence[int], Tensor] | None = None

    def add(
        self,
        place: Place,
        param: Tensor,
        types: Collection[type],
        slot: Slot | None,
        elements: Elements | None,
    ) -> None:
        """See Launch.add."""
        self._rows.append((place, slot, elements))

    def misfit(self) -> tuple[Place, str]:
        """See Launch.misfit."""
        return self._misfit

    def read(self, groups: Groups, states: Mapping[Tensor, Any], is_separate: bool) -> bool:
        """See Launch.read."""
        self.release()
        for (group, index), slot, elements in self._rows:
            params = params_of(groups[group]) if group < len(groups) else ()
            self._misfit = (group, index), "param"
            if index >= len(params) or (slot is not None and not slot.holds(params[index])):
                return False
            param = params[index]
            if param.grad is None:
                continue
            state = states.get(param, {})
            try:
                check_param(param, "")
                check_grad(param, param.grad, "")
                check_state(param, state, "")
            except (KeyError, RuntimeError, TypeError, ValueError):
                return False
            if not isinstance(state["step"], Tensor):
                return False
            dtypes = param.dtype, state["exp_avg"].dtype, state["step"].dtype
            if dtypes != (self.kind.param, self.kind.moment, self.kind.step):
                return False
            if not set(self.kind.state) <= set(state):
                return False
            if is_dtensor(param) and not torch.is_grad_enabled():
                moments = (state[key] for key in self.kind.state if key != "step")
                if not all(are_placed_alike(param, moment) for moment in moments):
                    return False
                if not are_placed_alike(param, param.grad):
                    self._misplaced.append(len(self._found))
            self._found.append(((group, index), param, param.grad, state))
            self._elements.append(elements)
        self._misfit = (0, 0), ""
        addresses = [local(tensor).data_ptr() for *_, tensor in self._written()]
        self._has_moved = addresses != self._addresses
        self._addresses = addresses
        return True

    def _written(self) -> Iterator[tuple[Place, str, Tensor]]:
        for place, param, _, state in self._found:
            for name, tensor in (("param", param), *((key, state[key]) for key in self.kind.state)):
                part = local(tensor)
                if has_own_memory(part) and not part.is_meta and part.numel() > 0:
                    yield place, name, tensor

    def misplaced(self) -> list[tuple[Place, Tensor, Tensor]]:
        """See Launch.misplaced."""
        return [self._found[i][:3] for i in self._misplaced]

    def take_gradients(self, redistributed: list[Tensor]) -> bool:
        """See Launch.take_gradients."""
        for i, grad in zip(self._misplaced, redistributed, strict=True):
            place, param, _, state = self._found[i]
            self._found[i] = place, param, grad, state
        return True

    @torch.no_grad()
    def sum_squares(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.sum_squares."""
        for (group, index), param, grad, _ in self._found:
            sums[first_of_group[group] + index] = sum_squares(local(grad), local(param))

    def track(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.track."""
        self._tracked = first_of_group, sums

    @torch.no_grad()
    def _sum_difference(self, place: Place, like: Tensor, after: Tensor, before: Tensor) -> None:
        assert self._tracked is not None
        first_of_group, sums = self._tracked
        sums[first_of_group[place[0]] + place[1]] = sum_squares(after - before, like)

    def _random(self, index: int, like: Tensor) -> Tensor | None:
        """The random bits of a parameter in this step."""
        elements = self._elements[index]
        if elements is None:
            return None
        return random_bits(self._random_keys[index], elements.places(like))

    def has_moved(self) -> bool:
        """See Launch.has_moved."""
        return self._has_moved

    def written_ranges(self) -> list[tuple[Place, str, int, int]]:
        """See Launch.written_ranges."""
        ranges = []
        for place, name, tensor in self._written():
            first, end = extent(tensor, name)[1:3] if is_dense(tensor) else (0, 0)
            ranges.append((place, name, first, end))
        return ranges

    def compute(self, step: Step) -> None:
        """See Launch.compute."""
        if step.overflows or step.is_skipped:
            self._found = []
            self._elements = []
        clip = 1.0 if step.host_clip is None else step.host_clip.coefficient
        scale = 1.0 if step.host_scale is None else step.host_scale
        known: dict[tuple[int, float], Coefficients] = {}
        for place, *_, state in self._found:
            check_count(float(state["step"]), name_of(step.groups, place))
            # The counter is incremented in its own dtype, as in torch.
            key = place[0], float(state["step"] + 1)
            if key not in known:
                arguments = step.options.coefficient_arguments(step.groups[place[0]])
                known[key] = coefficients(
                    key[1], **arguments, grad_scale=scale, clip_coefficient=clip
                )
            self._coefficients.append(known[key])
        for it, ((group, _), *_, state) in zip(self._elements, self._found, strict=True):
            if it is not None:
                seed = step.options.get(step.groups[group], "seed")
                own = parameter_key(seed, it.parameter)
                self._random_keys.append(step_key(own, float(state["step"] + 1)))

    def run(self) -> None:
        """See Launch.run."""
        # autograd records the operations of DTensors, not those of their local tensors.
        part: Callable[[Any], Any] = (lambda x: x) if torch.is_grad_enabled() else local
        for i, ((place, param, grad, state), c) in enumerate(
            zip(self._found, self._coefficients, strict=True)
        ):
            used = {key: part(state[key]) for key in self.kind.state if key != "step"}
            own = part(param)
            before = value_of(local(param).detach(), used).clone() if self._tracked else None
            step_(own, part(grad), used, c, self.kind.draws, self._random(i, own))
            if part(param) is not param:
                torch.autograd.graph.increment_version(param)
            state["step"] += 1
            if before is not None:
                after = value_of(local(param).detach(), used)
                self._sum_difference(place, local(param).detach(), after, before)
        self.release()
