"""The picture of the demo: validation, training, and the time of a step."""

from pathlib import Path

from matplotlib import pyplot

from bench.style import color, legend, save

from .runs import Run

SMOOTHED = 20  # steps of the moving average


def draw(runs: dict[str, Run], lr: float, path: Path) -> None:
    """Draw the losses as curves and the times as bars."""
    figure = pyplot.figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, run in runs.items():
        own = name.split(",")[0]
        # Equal curves lie on each other: wide below, dotted above.
        style = {own: {}, "torch RAdam": {"lw": 5, "alpha": 0.5}}.get(name, {"ls": ":", "lw": 3})
        steps, losses = run.smoothed(SMOOTHED)
        left.plot(run.validations.keys(), run.validations.values(), color=color(own), **style)
        middle.plot(steps, losses, color=color(own), label=name, **style)
    left.set(xlabel="step", ylabel="validation loss, nats per byte")
    left.set_title(f"Validation, learning rate {lr:g}")
    middle.set(xlabel="step", ylabel="training loss, nats per byte")
    middle.set_title(f"Training, mean of {SMOOTHED} steps")
    names = [name for name in runs if "," not in name][::-1]
    times = [runs[name].step_ms() for name in names]
    right.barh(names, times, color=[color(name) for name in names])
    for name, ms in zip(names, times, strict=True):
        right.text(ms, name, f" {ms:.1f}", va="center")
    right.set(xlabel="ms per optimizer step, median", title="Time of the step")
    right.margins(x=0.2)
    right.grid(axis="y", visible=False)
    legend(figure, (middle,))
    save(figure, path, {name: run.losses for name, run in runs.items()})
