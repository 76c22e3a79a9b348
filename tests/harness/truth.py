"""Rectified Adam from the formulas of the paper, in extended precision: the truth of the tests.

Written from arXiv 1908.03265 alone, without the package: m_hat and v_hat are formed explicitly, and
powers are numpy's.
"""

import mpmath
import numpy as np

REAL = np.longdouble
DIGITS = mpmath.workdps(60)


@DIGITS
def rho_t(t, beta2):
    """rho_t to many digits more than any arithmetic that is tested."""
    b = mpmath.mpf(beta2)
    t = mpmath.mpf(t)
    return 2 / (1 - b) - 1 - 2 * t * b**t / (1 - b**t)


@DIGITS
def bias_correction(t, beta):
    return 1 - mpmath.mpf(beta) ** mpmath.mpf(t)


@DIGITS
def variance(rho):
    """Theorem 1."""
    rho = mpmath.mpf(rho)
    half = (rho - 1) / 2
    power = mpmath.power(2, 2 * rho - 5)
    return rho / (rho - 2) - rho * power / mpmath.pi * mpmath.beta(half, half) ** 2


@DIGITS
def r(t, beta2, exact=False):
    """r_t in extended precision."""
    limit, at = 2 / (1 - mpmath.mpf(beta2)) - 1, rho_t(t, beta2)
    if exact:
        square = variance(limit) / variance(at)
    else:
        square = (at - 4) * (at - 2) * limit / ((limit - 4) * (limit - 2) * at)
    return REAL(mpmath.nstr(mpmath.sqrt(square), 25))


class Truth:
    """One parameter array and its moments."""

    def __init__(self, param):
        self.p = np.asarray(param, dtype=REAL)
        self.m, self.v, self.top = (np.zeros_like(self.p) for _ in range(3))
        self.t = 0

    def step(
        self,
        grad,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        decoupled_weight_decay=False,
        maximize=False,
        amsgrad=False,
        rectify=True,
        rectify_threshold=5.0,
        exact_rectification=False,
        degenerated_to_sgd=True,
        eps_after_bias_correction=False,
        absolute_weight_decay=False,
        decay_skipped_steps=True,
    ):
        self.t += 1
        t, (b1, b2) = self.t, map(REAL, betas)
        g = np.asarray(grad, dtype=REAL) * (-1 if maximize else 1)
        rectified = not rectify or rho_t(t, betas[1]) > rectify_threshold
        moves = rectified or degenerated_to_sgd
        if not decoupled_weight_decay:
            g = g + REAL(weight_decay) * self.p
        elif moves or decay_skipped_steps:
            scale = 1 if absolute_weight_decay else REAL(lr)
            self.p = self.p - scale * REAL(weight_decay) * self.p
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        self.top = np.maximum(self.top, self.v)
        v = self.top if amsgrad else self.v
        m_hat = self.m / (1 - b1**t)
        if rectified:
            r_t = r(t, betas[1], exact_rectification) if rectify else REAL(1)
            root = np.sqrt(1 - b2**t)
            if eps_after_bias_correction:
                denominator = np.sqrt(v) / root + REAL(eps)
            else:
                denominator = (np.sqrt(v) + REAL(eps)) / root
            self.p = self.p - REAL(lr) * r_t * m_hat / denominator
        elif moves:
            self.p = self.p - REAL(lr) * m_hat
