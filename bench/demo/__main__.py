"""The demo: at a rate where Adam fails, RAdam trains; FusedRAdam does the same, faster."""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from radam_fused import FusedRAdam

from .picture import draw
from .runs import Run
from .summary import ADAM, OURS, RELOADED, TORCH, summary
from .text import standard_library

EVERY = 40  # steps between two validations


def train(steps: int, lr: float) -> tuple[dict[str, Run], float]:
    """Train four runs side by side, with the same seed and batches.

    Returns:
        The runs, and how far FusedRAdam and torch RAdam were apart at the first validation, as a
        part of the way that their parameters had gone.
    """
    apart = None
    text, held_out = standard_library()
    makers = {ADAM: torch.optim.Adam, TORCH: torch.optim.RAdam, OURS: FusedRAdam}
    runs = {name: Run(make, lr) for name, make in makers.items()}
    for step in tqdm(range(steps), desc="training", mininterval=1):
        if step == steps // 2:
            checkpoint = runs[OURS].save()
            runs[RELOADED] = Run(FusedRAdam, lr)
            runs[RELOADED].load(checkpoint)
        for run in runs.values():
            run.train(text, step)
        if step % EVERY == EVERY - 1 or step == steps - 1:
            for run in runs.values():
                run.validate(held_out, step + 1)
            if apart is None:
                apart = runs[OURS].distance(runs[TORCH]) / runs[OURS].distance_from_start()
    assert apart is not None
    return runs, apart


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate of every run")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture")
    options = parser.parse_args(arguments)

    print(
        f"A transformer learns the bytes of Python's standard library: 3 optimizers, 4 runs of "
        f"{options.steps} steps at learning rate {options.lr:g}. Half a minute on two cores.",
        flush=True,
    )
    start = time.monotonic()
    runs, apart = train(options.steps, options.lr)
    text, is_right = summary(runs, apart)
    print(f"\n{text}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(runs, options.lr, options.out / "demo.png")
    print(f"\npicture: {options.out / 'demo.png'}   ({time.monotonic() - start:.0f} s)")
    if not is_right:
        raise SystemExit("a run is not what it should be")


if __name__ == "__main__":
    main()
