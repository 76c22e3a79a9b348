"""The synthetic problem on which Adam converges to the wrong point, also with rectification.

Reddi et al., "On the Convergence of Adam and Beyond", arXiv 1904.09237, section 5: on [-1, 1],
f_t(x) = 1010 x at every 101st step and -10 x at the others, or at random with probability 0.01. The
best fixed point is -1; the regret is relative to the best fixed point in hindsight.
"""

import math
from typing import Any

import torch
from tqdm import tqdm

from bench.style import color, legend, plain
from radam_fused import FusedRAdam

from .grid import logarithmic
from .page import markdown

QUESTION = "Does rectification change Adam's result on AMSGrad's problem?"
MINUTES = 9
SIZE = (9, 6)  # of the picture, inches

RATE = 2.0  # the learning rate of step t is RATE / sqrt(t)
BETAS = (0.9, 0.99)
REPLICAS = 20  # of the stochastic problem
OPTIMIZERS = {
    "Adam": {"rectify": False, "eps_after_bias_correction": True},
    "AMSGrad": {"rectify": False, "eps_after_bias_correction": True, "amsgrad": True},
    "RAdam": {},
    "RAdam, amsgrad": {"amsgrad": True},
}


def _slopes(steps: int) -> torch.Tensor:
    """The slopes of every step: column 0 is the periodic problem, the others the random one."""
    generator = torch.Generator().manual_seed(0)
    rare = torch.rand(steps, 1 + REPLICAS, generator=generator) < 0.01
    rare[:, 0] = torch.arange(1, steps + 1) % 101 == 1
    return torch.where(rare, 1010.0, -10.0)


def _run(options: dict[str, bool], slopes: torch.Tensor, title: str) -> dict[str, Any]:
    x = torch.nn.Parameter(torch.zeros(slopes.shape[1]))
    optimizer = FusedRAdam([x], lr=RATE, betas=BETAS, **options)
    marks = logarithmic(len(slopes), 20) | {len(slopes)}
    loss, sums = (torch.zeros(slopes.shape[1], dtype=torch.float64) for _ in range(2))
    times, places, regrets = [], [], []
    for t, slope in enumerate(tqdm(slopes, title, mininterval=1), 1):
        loss += slope * x.detach()
        sums += slope
        optimizer.param_groups[0]["lr"] = RATE / math.sqrt(t)
        x.grad = slope
        optimizer.step()
        x.data.clamp_(-1.0, 1.0)
        if t in marks:
            times.append(t)
            places.append(x.tolist())
            regrets.append(((loss + sums.abs()) / t).tolist())
    return {"t": times, "x": places, "average regret": regrets}


def measure(steps: int = 2_000_000) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Of each optimizer.
    """
    slopes = _slopes(steps)
    settings = {"steps": steps, "rate": RATE, "betas": BETAS, "replicas": REPLICAS}
    runs = {name: _run(options, slopes, name) for name, options in OPTIMIZERS.items()}
    return {"settings": settings, "runs": runs}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(results: dict[str, Any]) -> str:
    rows = []
    for name, run in results["runs"].items():
        places, regrets = run["x"][-1], run["average regret"][-1]
        rows.append(
            [
                name,
                f"{places[0]:+.3f}",
                f"{regrets[0]:.3f}",
                f"{_mean(places[1:]):+.3f} ({min(places[1:]):+.3f} to {max(places[1:]):+.3f})",
                f"{_mean(regrets[1:]):.3f}",
            ]
        )
    steps = f"{results['settings']['steps']:,}"
    head = [f"after {steps} steps", "x, periodic", "average regret"]
    head += [f"x, random, mean and range of {REPLICAS}", "average regret, mean"]
    return markdown(rows, head)


def draw(results: dict[str, Any], figure: Any) -> None:
    """Rows: the point and the regret. Columns: the periodic problem, and the random one."""
    axes = figure.subplots(2, 2, sharex=True)
    parts = {"periodic": slice(0, 1), "random": slice(1, None)}
    for column, (problem, part) in enumerate(parts.items()):
        for row, key in enumerate(("x", "average regret")):
            axis = axes[row][column]
            for name, run in results["runs"].items():
                values = torch.tensor(run[key])[:, part]
                # RAdam ends where Adam does: a dashed line over a wide one shows both.
                wide = name in ("Adam", "AMSGrad")
                style = {"lw": 3.5, "alpha": 0.5} if wide else {"lw": 1.2, "ls": "--"}
                axis.plot(run["t"], values.median(1)[0], color=color(name), label=name, **style)
            axis.set(xscale="log")
        axes[0][column].set_title(f"{problem}" + ", median of 20 runs" * (problem == "random"))
        axes[0][column].set_ylabel("x (the best is -1)")
        axes[1][column].set(xlabel="step t", ylabel="average regret per step")
        axes[1][column].set(yscale="log", ylim=(0.05, 100))
    plain(*axes.flat)
    legend(figure, axes.flat)
