"""The presets side by side: how other implementations differ from torch.optim.RAdam."""

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.style import LINES, grid_of, legend, plain
from radam_fused import PRESETS, FusedRAdam

from .page import markdown
from .training import TASKS

QUESTION = "How do other implementations differ?"
MINUTES = 1
SIZE = (10, 5.2)  # of the picture, inches

LR = 0.01
SETTINGS: dict[str, dict[str, Any]] = {
    "preset defaults": {},
    "preset defaults, weight decay 0.01": {"weight_decay": 0.01},
    "same betas and eps": {"betas": (0.9, 0.999), "eps": 1e-8},
}
BASE = "torch"
SHOWN = [1, 5, 6, 10, 100]


class _Run:
    """A training run with one preset, and its record."""

    def __init__(self, preset: str, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.model = TASKS["digits"].model()
        self.start = self.weights()
        self.optimizer = FusedRAdam(
            self.model.parameters(), lr=LR, **{**PRESETS[preset], **options}
        )
        self.losses: list[float] = []
        self.factors: list[float] = []

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def backward(self, step: int) -> None:
        self.optimizer.zero_grad()
        loss = TASKS["digits"].loss(self.model, step)
        loss.backward()
        self.losses.append(loss.item())

    def take_gradients(self, other: "_Run") -> None:
        for p, q in zip(self.model.parameters(), other.model.parameters(), strict=True):
            p.grad = q.grad

    def step(self) -> None:
        self.optimizer.step()
        self.factors.append(self.optimizer.rectification()[0].step_size / LR)

    def distance(self, base: "_Run") -> float:
        """The distance to the weights of the base, relative to the distance that the base moved."""
        moved = (base.weights() - base.start).norm()
        return ((self.weights() - base.weights()).norm() / moved).item()


def _side_by_side(setting: str, steps: int) -> dict[str, Any]:
    options = SETTINGS[setting]
    base = _Run(BASE, options)
    fed, free = ({name: _Run(name, options) for name in PRESETS} for _ in range(2))
    distances: dict[str, dict[str, list[float]]] = {
        how: {name: [] for name in PRESETS} for how in ("same gradients", "own gradients")
    }
    for step in tqdm(range(steps), setting, mininterval=1):
        base.backward(step)
        for run in fed.values():
            run.take_gradients(base)
            run.step()
        for run in free.values():
            run.backward(step)
            run.step()
        base.step()
        for how, runs in (("same gradients", fed), ("own gradients", free)):
            for name, run in runs.items():
                distances[how][name].append(run.distance(base))
    return {
        **distances,
        "factors": {name: run.factors for name, run in fed.items()},
        "losses": {name: run.losses for name, run in free.items()},
    }


def measure(steps: int = 100) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Steps of each run.
    """
    return {
        "settings": {"steps": steps, "lr": LR, "seed": 0},
        "runs": {setting: _side_by_side(setting, steps) for setting in SETTINGS},
    }


def table(results: dict[str, Any]) -> str:
    steps = results["settings"]["steps"]
    shown = [t for t in SHOWN if t <= steps]
    tables = []
    for setting, runs in results["runs"].items():
        rows = []
        for name, fed in runs["same gradients"].items():
            last = runs["losses"][name][-10:]
            values = [f"{fed[t - 1]:.2g}" for t in shown]
            own = f"{runs['own gradients'][name][-1]:.2g}"
            rows.append([f"`{name}`", *values, own, f"{sum(last) / len(last):.3f}"])
        head = [setting, *(f"t = {t}" for t in shown)]
        head += [f"own gradients, t = {steps}", "loss, last 10"]
        tables.append(markdown(rows, head))
    return "\n\n".join(tables)


def _alike(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Presets with equal values, under one name."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, of in values.items():
        names.setdefault(tuple(of), []).append(name)
    return {", ".join(alike): list(of) for of, alike in names.items()}


def draw(results: dict[str, Any], figure: Any) -> None:
    """A panel per preset that differs from torch's; the lines are the settings."""
    names = [name for name in PRESETS if name != BASE]
    axes = grid_of(figure, len(names) + 1, 4, sharex=True)
    for axis, name in zip(axes, names, strict=False):
        for (setting, runs), style in zip(results["runs"].items(), LINES, strict=False):
            values = runs["same gradients"][name]
            shown = [value or math.nan for value in values]  # equal ones have no place on the axis
            axis.semilogy(range(1, len(values) + 1), shown, style, color="#303030", label=setting)
        equal = [s for s, runs in results["runs"].items() if not any(runs["same gradients"][name])]
        if equal:
            text = "equal to torch with\n" + "\n".join(equal)
            axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", fontsize=8)
        axis.set(title=name, ylim=(1e-5, 10))
        plain(axis)
    for axis in axes[0:-1:4]:
        axis.set_ylabel("distance from torch /\ndistance moved")
    last = axes[-1]
    factors = _alike(results["runs"]["preset defaults"]["factors"])
    for name, values in factors.items():
        last.plot(range(1, len(values) + 1), values, color="#808080")
        if name in ("optimi", next(iter(factors))):
            label = name if name == "optimi" else "the others"
            last.annotate(label, (len(values), values[-1]), ha="right", va="bottom")
    last.set(title="step size / learning rate", ylim=(-0.05, 1.15))
    for axis in axes[-4:]:
        axis.set_xlabel("step t")
    legend(figure, axes[:-1], columns=3)
