"""The correctly rounded square root that torch does not give on every device."""

import torch
from torch import Tensor

# Below this the residual of a float64 root would underflow; above it nothing overflows.
_TINY = 2.0**-900
_SCALE = 2.0**200


def root(x: Tensor) -> Tensor:
    """Square root rounded to nearest even, differentiable.

    torch's own is, except on the CPU, where (MKL's) about 1 % of the roots are off by one unit in
    the last place. There a float32 root is rounded from a float64 one, which has more than twice
    the digits and so never lies near a tie, and a float64 root gets one Newton step on its exact
    residual (T. J. Dekker, "A floating-point technique for extending the available precision",
    1971, section 5).

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
        # Zeros, infinities and NaNs are right as they are and have no residual.
        step = torch.where(correction.isfinite(), corrected - rough, 0.0)
    return rough + step
