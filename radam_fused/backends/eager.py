"""The eager backend: the update in PyTorch operations, for any device, differentiable."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..dtensors import are_placed_alike, is_dtensor, local
from ..flat import Slot
from ..groups import Groups, Place, name_of, params_of
from ..overlap import extent
from ..rectification import Coefficients, Update, coefficients
from ..state import (
    State,
    arithmetic_dtype,
    check_count,
    check_grad,
    check_param,
    check_state,
)
from ..sums import sum_squares
from ..tensors import has_own_memory, is_dense
from .launches import Kind, Reducer
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


def update_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    c: Coefficients,
) -> None:
    """One step of Rectified Adam (arXiv 1908.03265, Algorithm 2), in place.

    Each operation is rounded separately.

    Args:
        param: The parameter. float64 and complex128 are updated in float64, the rest in float32.
        grad: Its gradient, of the same shape; it is only read.
        exp_avg: First moment, of the same shape.
        exp_avg_sq: Second moment, of the same shape.
        max_exp_avg_sq: Running maximum of the second moment, or None without amsgrad.
        c: The coefficients of the step.
    """
    if param.is_complex():
        param, grad, exp_avg, exp_avg_sq = map(
            torch.view_as_real, (param, grad.resolve_conj(), exp_avg, exp_avg_sq)
        )
        if max_exp_avg_sq is not None:
            max_exp_avg_sq = torch.view_as_real(max_exp_avg_sq)
    dtype = arithmetic_dtype(param)
    # autograd keeps operands, which must not be the tensors that the step writes.
    copies = torch.is_grad_enabled()
    p, m, v = (tensor.to(dtype, copy=copies) for tensor in (param, exp_avg, exp_avg_sq))

    g = grad.to(dtype) * c.grad_mul
    if c.l2 != 0:
        g = g + p * c.l2
    p = p * c.decay
    keep, drop, w = _weights(c.one_minus_beta1, dtype)
    m = m * keep + (g - m * drop) * w
    keep, drop, w = _weights(c.one_minus_beta2, dtype)
    # g w comes first: g g would overflow earlier.
    v = v * keep + (g * (g * w) - v * (drop * w))
    s = v
    if max_exp_avg_sq is not None:
        s = torch.maximum(max_exp_avg_sq.to(dtype, copy=copies), v)
    if c.update is Update.RECTIFIED:
        p = p - (m * c.step_size) / (sqrt_rn(s) + c.eps)
    elif c.update is Update.MOMENTUM:
        p = p - m * c.step_size

    param.copy_(p)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if max_exp_avg_sq is not None:
        max_exp_avg_sq.copy_(s)


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
        self._rows: list[tuple[Place, Slot | None]] = []
        self._misfit: tuple[Place, str] = (0, 0), ""
        self._addresses: list[int] = []
        self._has_moved = False
        self.release()

    def release(self) -> None:
        """See Launch.release."""
        self._found: list[tuple[Place, Tensor, Tensor, State]] = []
        self._misplaced: list[int] = []  # indices in it
        self._coefficients: list[Coefficients] = []
        self._tracked: tuple[Sequence[int], Tensor] | None = None

    def add(self, place: Place, param: Tensor, types: Collection[type], slot: Slot | None) -> None:
        """See Launch.add."""
        self._rows.append((place, slot))

    def misfit(self) -> tuple[Place, str]:
        """See Launch.misfit."""
        return self._misfit

    def read(self, groups: Groups, states: Mapping[Tensor, Any], is_separate: bool) -> bool:
        """See Launch.read."""
        self.release()
        for (group, index), slot in self._rows:
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
            dtypes = param.dtype, state["step"].dtype
            if dtypes != (self.kind.param, self.kind.step):
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
    def _sum_difference(self, place: Place, after: Tensor, before: Tensor) -> None:
        assert self._tracked is not None
        first_of_group, sums = self._tracked
        dtype = arithmetic_dtype(after)
        difference = after.to(dtype) - before.to(dtype)
        sums[first_of_group[place[0]] + place[1]] = sum_squares(difference, after)

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
        clip = 1.0 if step.host_clip is None else step.host_clip.coefficient
        scale = 1.0 if step.host_scale is None else step.host_scale
        known: dict[tuple[int, float], Coefficients] = {}
        for place, *_, state in self._found:
            count = float(state["step"])
            check_count(count, name_of(step.groups, place))
            key = place[0], count + 1
            if key not in known:
                arguments = step.options.coefficient_arguments(step.groups[place[0]])
                known[key] = coefficients(
                    key[1], **arguments, grad_scale=scale, clip_coefficient=clip
                )
            self._coefficients.append(known[key])

    def run(self) -> None:
        """See Launch.run."""
        # autograd records the operations of DTensors, not those of their local tensors.
        part: Callable[[Any], Any] = (lambda x: x) if torch.is_grad_enabled() else local
        for (place, param, grad, state), c in zip(self._found, self._coefficients, strict=True):
            before = local(param).detach().clone() if self._tracked else None
            exp_avg, exp_avg_sq = part(state["exp_avg"]), part(state["exp_avg_sq"])
            maximum = state["max_exp_avg_sq"] if "max_exp_avg_sq" in self.kind.state else None
            update_(part(param), part(grad), exp_avg, exp_avg_sq, part(maximum), c)
            if part(param) is not param:
                torch.autograd.graph.increment_version(param)
            state["step"] += 1
            if before is not None:
                self._sum_difference(place, local(param).detach(), before)
        self.release()
