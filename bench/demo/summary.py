"""The table of the demo, and its verdicts."""

import torch
from tabulate import tabulate

from .runs import Run

ADAM, TORCH, OURS = "torch Adam", "torch RAdam", "FusedRAdam"
RELOADED = "FusedRAdam, reloaded midway"

ROUNDING = 1e-4  # of the way of the parameters; torch's for-loop and foreach are 1e-5 apart
FAILED = 0.2  # nats per byte above RAdam's loss


def summary(runs: dict[str, Run], apart: float) -> tuple[str, bool]:
    """What the runs have shown.

    Args:
        runs: The runs by name.
        apart: How far FusedRAdam and torch RAdam were apart at the first validation.

    Returns:
        The text, and whether FusedRAdam agrees with torch RAdam and resumes bit for bit.
    """
    theirs, mine = runs[TORCH], runs[OURS]
    rows = [
        [
            name,
            f"{run.final_loss():.3f}",
            f"{run.validation_loss():.3f}",
            f"{run.step_ms():.2f}",
            f"{run.share():.0%}",
            "" if run is theirs else f"{theirs.step_ms() / run.step_ms():.1f} x",
        ]
        for name, run in runs.items()
    ]
    head = ["", "training loss", "validation loss", "optimizer, ms"]
    head += ["optimizer's share of the step", "faster than torch RAdam"]
    size = sum(p.numel() for p in mine.model.parameters())
    adam_loss, loss = runs[ADAM].validation_loss(), mine.validation_loss()
    result = "has failed" if adam_loss > loss + FAILED else "trains as well"
    is_same, is_resumed = apart <= ROUNDING, mine.distance(runs[RELOADED]) == 0
    first = next(iter(mine.validations))
    same = "equal up to rounding" if is_same else "NOT equal"
    lines = [
        tabulate(rows, head, disable_numparse=True),
        f"{size:,} parameters, {torch.get_num_threads()} threads; losses in nats per byte",
        "",
        f"Adam {result} at this learning rate: validation loss {adam_loss:.2f}, RAdam {loss:.2f}.",
        f"FusedRAdam and torch RAdam are {same}: after {first} steps their parameters differ by",
        f"  {apart:.0e} of the way from the start. Training at this rate then amplifies it.",
        f"The reloaded run is {'equal, bit for bit' if is_resumed else 'NOT equal'}.",
    ]
    return "\n".join(lines), is_same and is_resumed
