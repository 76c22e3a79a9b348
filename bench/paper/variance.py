"""The variance of the adaptive rate: simulated, exact and approximated; rectified and not.

arXiv 1908.03265, sections 2 to 4 and figure 9: the adaptive rate psi of the first steps, an average
of few samples, has an unbounded variance; r_t makes it the same at every step.
"""

from typing import Any

import torch
from tqdm import tqdm

from bench.style import color, legend, plain
from radam_fused import FusedRAdam
from radam_fused.rectification import rho_inf, rho_t, variance

from .grid import logarithmic
from .page import markdown

QUESTION = "How large is the variance of the early adaptive rate, and does r_t make it constant?"
MINUTES = 1
SIZE = (10, 4.2)  # of the picture, inches

MEANS = [0.0, 0.001, 0.01, 0.1]
BETA2 = 0.999
RECTIFIED = {
    "psi": {"rectify": False},
    "r_t psi": {},
    "exact r_t psi": {"exact_rectification": True},
}


def _of_simple_averages(longest: int, replicas: int) -> dict[str, list[float]]:
    """Variance of the inverse root of the mean of n squares, n = 3 ... longest."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(replicas, dtype=torch.float64)
    lengths, found = [], []
    for n in tqdm(range(1, longest + 1), "simple averages", mininterval=1):
        squares += torch.randn(replicas, generator=generator, dtype=torch.float64).square()
        if n > 2:
            lengths.append(float(n))
            found.append((squares / n).rsqrt().var().item())
    return {
        "rho": lengths,
        "simulated": found,
        "exact": [variance(n, exact=True) for n in lengths],
    }


def _grid(steps: int) -> list[int]:
    """The recorded steps, which include the first rectified one."""
    return sorted(logarithmic(steps, 25) | {6, steps})


def _of_steps(mean: float, how: str, steps: int, replicas: int) -> list[float]:
    """The variance over elements of the factor by which FusedRAdam multiplies a gradient."""
    generator = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.zeros(replicas, dtype=torch.float64))
    # Without momentum and eps, a step with lr 1 from 0 is -psi g, or -r_t psi g if rectified.
    optimizer = FusedRAdam([p], lr=1.0, betas=(0.0, BETA2), eps=0.0, **RECTIFIED[how])
    found, times = [], set(_grid(steps))
    for t in tqdm(range(1, steps + 1), f"{how}, g ~ N({mean}, 1)", mininterval=1):
        p.data.zero_()
        p.grad = torch.randn(replicas, generator=generator, dtype=torch.float64) + mean
        optimizer.step()
        if t in times:
            found.append((p.detach() / p.grad).var().item())
    return found


def measure(replicas: int = 1_000_000, steps: int = 2000) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        replicas: Independent sequences of gradients of the simple averages; a twentieth for steps.
        steps: Of the optimizer.
    """
    of_steps = {
        how: {str(mean): _of_steps(mean, how, steps, replicas // 20) for mean in MEANS}
        for how in RECTIFIED
    }
    times = _grid(steps)
    at = [rho_t(t, BETA2) for t in times]
    grid = [2.0 + 10 ** (i / 20) for i in range(-40, 42)]
    return {
        "settings": {"replicas": replicas, "steps": steps, "beta2": BETA2},
        "simple averages": _of_simple_averages(100, replicas),
        "formulas": {
            "rho": grid,
            "exact": [variance(r, exact=True) for r in grid],
            "first order": [variance(r) if r > 4 else None for r in grid],
        },
        "steps": {
            "t": times,
            "rho": at,
            **of_steps,
            "exact": [variance(r, exact=True) if r > 2 else None for r in at],
            "first order": [variance(r) if r > 4 else None for r in at],
            "limit": variance(rho_inf(BETA2), exact=True),
        },
    }


def table(results: dict[str, Any]) -> str:
    simple = results["simple averages"]
    rows = []
    for n, simulated, exact in zip(
        *(simple[k] for k in ("rho", "simulated", "exact")), strict=True
    ):
        if n in (3, 4, 5, 6, 8, 10, 20, 50, 100):
            first = f"{variance(n):.5f}" if n > 4 else "infinite"
            off = f"{variance(n) / exact:.3f}" if n > 4 else ""
            rows.append([f"{n:.0f}", f"{simulated:.5f}", f"{exact:.5f}", first, off])
    by_rho = markdown(
        rows, ["rho", "simulated", "exact (Theorem 1)", "first order", "first order / exact"]
    )
    steps = results["steps"]
    rows = []
    for t in (6, 10, 100, 1000, 2000):
        if t in steps["t"]:
            i = steps["t"].index(t)
            plain = [f"{steps['psi'][str(mean)][i]:.2e}" for mean in MEANS]
            rectified = [f"{steps[how]['0.0'][i]:.2e}" for how in list(RECTIFIED)[1:]]
            rows.append(
                [t, f"{steps['rho'][i]:.2f}", *plain, f"{steps['exact'][i]:.2e}", *rectified]
            )
    head = ["t", "rho_t", *(f"psi, mu = {mean}" for mean in MEANS), "exact at rho_t"]
    head += [f"{how}, mu = 0" for how in list(RECTIFIED)[1:]]
    by_step = markdown(rows, head)
    return f"{by_rho}\n\n{by_step}"


def draw(results: dict[str, Any], figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3)
    formulas, simple, steps = (results[k] for k in ("formulas", "simple averages", "steps"))
    left.loglog(formulas["rho"], formulas["exact"], color="#303030", label="exact (Theorem 1)")
    first = [float("nan") if x is None else x for x in formulas["first order"]]
    left.loglog(formulas["rho"], first, "--", color="#303030", label="first-order approximation")
    every = slice(None, None, 6)
    left.loglog(
        simple["rho"][every],
        simple["simulated"][every],
        "o",
        ms=4,
        mfc="none",
        color="#303030",
        label="simulated",
    )
    left.set(xlabel="rho", ylabel="variance of psi", title="Simple averages", ylim=(1e-3, 1e3))
    pairs = zip(formulas["rho"], formulas["exact"], formulas["first order"], strict=True)
    ratios = [(r, approximate / exact) for r, exact, approximate in pairs if approximate]
    middle.loglog(*zip(*ratios, strict=True), color="#303030")
    middle.set(xlabel="rho", ylabel="first order / exact", title="Error of the approximation")
    times = steps["t"]
    shown = {
        "psi": ("#404040", "Adam: psi"),
        "r_t psi": (color("RAdam"), "RAdam: r_t psi"),
        "exact r_t psi": ("#f0a070", "RAdam, exact_rectification=True"),
    }
    for how, (shade, label) in shown.items():
        right.loglog(times, steps[how]["0.0"], color=shade, label=label)
    exact = [float("nan") if x is None else x for x in steps["exact"]]
    right.loglog(times, exact, ":", color="#a0a0a0", lw=3, label="exact variance at rho_t")
    right.set(xlabel="step t", ylabel="variance of the factor", title="The optimizer")
    right.set_ylim(1e-4, 1e2)
    plain(left, middle, right)
    legend(figure, (left, right))
