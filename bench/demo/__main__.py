"""The demo: four runs with the same seed and batches, side by side; a table and a picture."""

import argparse
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from radam_fused import FusedRAdam

from .runs import Run
from .text import standard_library

ADAM, TORCH, OURS = "torch Adam, no warm-up", "torch RAdam", "FusedRAdam"
RELOADED = "FusedRAdam, reloaded midway"


def train(steps: int, lr: float) -> tuple[dict[str, Run], dict[str, float], list[float]]:
    """Train; returns the runs, their validation losses, and r_t of every step."""
    text, held_out = standard_library()
    makers = {ADAM: torch.optim.Adam, TORCH: torch.optim.RAdam, OURS: FusedRAdam}
    runs = {name: Run(make, lr) for name, make in makers.items()}
    rectification = []
    for step in tqdm(range(steps), desc="training", mininterval=1):
        if step == steps // 2:
            checkpoint = runs[OURS].save()
            runs[RELOADED] = Run(FusedRAdam, lr)
            runs[RELOADED].load(checkpoint)
        for run in runs.values():
            run.train(text, step)
        rectification.append(runs[OURS].optimizer.rectification()[0].r_t)
    validation = {name: run.validate(held_out) for name, run in runs.items()}
    return runs, validation, rectification


def table(runs: dict[str, Run], validation: dict[str, float]) -> str:
    rows = [
        [
            name,
            f"{run.final_loss():.4f}",
            f"{validation[name]:.4f}",
            f"{run.step_ms():.2f}",
            f"{run.share():.1%}",
            f"{runs[TORCH].step_ms() / run.step_ms():.1f}",
        ]
        for name, run in runs.items()
    ]
    head = ["", "train loss", "val loss", "step, ms", "of training", "torch RAdam / this"]
    return tabulate(rows, head, disable_numparse=True)


def draw(runs: dict[str, Run], rectification: list[float], path: Path) -> None:
    """Draw the loss curves, and r_t beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    styles = {ADAM: "-", TORCH: "-", OURS: "--", RELOADED: ":"}
    for name, run in runs.items():
        left.plot(list(run.losses), list(run.losses.values()), styles[name], label=name)
    left.set(
        xlabel="step", ylabel="training loss, nats per byte", title="Standard library, by bytes"
    )
    left.legend()
    right.plot(range(1, len(rectification) + 1), rectification)
    right.set(xlabel="step", ylabel="r_t", title="Rectification of FusedRAdam")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of every run")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture")
    options = parser.parse_args(arguments)

    runs, validation, rectification = train(options.steps, options.lr)
    size = sum(p.numel() for p in runs[OURS].model.parameters())
    print(f"\n{size:,} parameters, {options.steps} steps, {torch.get_num_threads()} threads")
    print(table(runs, validation))
    difference = runs[OURS].largest_difference(runs[TORCH])
    print(f"\nlargest parameter difference between FusedRAdam and torch RAdam: {difference:.2e}")
    resumed = runs[OURS].largest_difference(runs[RELOADED])
    print(f"largest parameter difference after the reload: {resumed}")
    if resumed != 0:
        raise SystemExit("the reloaded run did not continue bit for bit")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(runs, rectification, options.out / "demo.png")
    print(f"curves: {options.out / 'demo.png'}")


if __name__ == "__main__":
    main()
