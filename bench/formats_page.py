"""The generated parts of docs/storage-formats.md."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radam_fused.benchmark.timing import Timing, timings, verdict

from .bandwidth_limit import LIMIT
from .format_bytes import (
    COPIES,
    FLOAT32,
    FLOAT32_MOMENTS,
    FORMATS,
    NARROW,
    OTHER_RIVALS,
    ROUNDED,
    SPLIT,
    SPLIT_MOMENTS,
    TIMED_RIVALS,
    TORCH_NARROW,
)
from .format_quality import loss_verdict
from .machine import where
from .paper.page import markdown
from .tables import fastest_first, targets_table

Record = dict[str, Any]

PAGE = Path(__file__).parents[1] / "docs" / "storage-formats.md"

CASE = "GPT-2 124M"

CHOICE = {
    FLOAT32: "the default",
    FLOAT32_MOMENTS: "float32 parameters with less memory and time",
    SPLIT: "bfloat16 parameters with the values and moments of float32 ones",
    SPLIT_MOMENTS: "bfloat16 parameters with exact float32 values, in less memory",
    COPIES: "float16 parameters; code that writes parameters between steps",
    ROUNDED: "the least memory; there are no float32 values to export",
    NARROW: "nothing: small updates are lost",
    TORCH_NARROW: "checkpoints of torch; small updates are lost",
}


def _options(name: str) -> str:
    options = FORMATS[name].options.items()
    return ", ".join(f"`{key}={value!r}`".replace("'", '"') for key, value in options)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _training(record: Record, name: str) -> str:
    losses = record["quality"]["losses"]
    if name not in losses:
        return "not run"
    if name == FLOAT32:
        return ""
    difference = statistics.fmean(losses[name]) - statistics.fmean(losses[FLOAT32])
    return f"{loss_verdict(losses, name)} ({difference:+.3f})"


def _overview(record: Record) -> str:
    measured = timings(record["seconds"][CASE])
    rows = []
    for name, format in FORMATS.items():
        stored = format.bytes()
        rows.append(
            [
                str(format.dtype).removeprefix("torch."),
                _options(name),
                *map(_number, (stored.kept(), stored.moved())),
                f"{measured[name].median * 1e3:.1f}",
                _training(record, name),
                CHOICE[name],
            ]
        )
    head = ["parameters", "options", "bytes kept", "bytes moved", f"ms, {CASE}"]
    return markdown(rows, [*head, "its loss, against float32", "choose it for"])


def headline(record: Record) -> str:
    """What the formats save, in words that follow "against a float32 step"."""
    measured = timings(record["seconds"][CASE])
    narrow, both, split = (
        f"{measured[name].median / measured[FLOAT32].median:.2f}"
        for name in (FLOAT32_MOMENTS, SPLIT_MOMENTS, SPLIT)
    )
    kept, wide = (_number(FORMATS[name].bytes().kept()) for name in (SPLIT_MOMENTS, FLOAT32))
    return (
        f'`moments="bfloat16"` keeps {kept} instead of {wide} bytes per parameter and takes '
        f'{narrow} of the time; `master_weights="split"` trains bfloat16 models with exact '
        f"float32 values in {split}, and both together in {both}"
    )


def _training_text(record: Record) -> str:
    quality = record["quality"]
    seeds, lr = len(quality["losses"][FLOAT32]), quality["learning_rate"]
    return (
        f"{quality['steps']:,} steps, {seeds} seeds for the initial weights and the batches, a "
        f"learning rate that decays linearly from {lr:g} to 0. A loss is equal to that of float32 "
        "if the means over the seeds differ by at most the spread of float32, which is its highest "
        "loss minus its lowest one."
    )


def _rivals(record: Record) -> str:
    measured = timings(record["seconds"][CASE])
    rows = []
    for name, stored in (TIMED_RIVALS | OTHER_RIVALS).items():
        time = f"{measured[name].median * 1e3:.1f}" if name in measured else "not run here"
        rows.append([name, *map(_number, (stored.kept(), stored.moved())), time])
    return markdown(rows, ["optimizer", "bytes kept", "bytes moved", f"ms, {CASE}"])


def _with_quartiles(t: Timing) -> list[str]:
    median, low, high = (f"{s * 1e3:.2f}" for s in (t.median, t.lower_quartile, t.upper_quartile))
    return [median, f"{low} - {high}"]


def _times(record: Record) -> str:
    """The times of every case, the fastest first."""
    sizes = {name: format.bytes() for name, format in FORMATS.items()} | TIMED_RIVALS
    rows = []
    for case, section in record["seconds"].items():
        of = timings(section)
        limit = of[LIMIT].median
        for name, t in fastest_first(of).items():
            share = f"{sizes[name].share(limit, t.median):.2f}" if name in sizes else "1.00"
            how = "" if name in (FLOAT32, LIMIT) else verdict(t, of[FLOAT32])
            rows.append([case, name, *_with_quartiles(t), share, how])
    head = ["case", "format", "ms", "quartiles", "of its limit", "against float32"]
    return markdown(rows, head)


def _losses(record: Record) -> str:
    losses = record["quality"]["losses"]
    rows = []
    for name, of in losses.items():
        pairs = zip(of, losses[FLOAT32], strict=True)
        differences = "" if name == FLOAT32 else ", ".join(f"{a - b:+.3f}" for a, b in pairs)
        own = [f"{statistics.fmean(of):.3f}", f"{min(of):.3f} - {max(of):.3f}", differences]
        rows.append([name, *own, _training(record, name)])
    head = ["format", "loss", "over the seeds", "differences by seed", "against float32"]
    return markdown(rows, head)


def _errors(record: Record) -> str:
    rows = [
        [name, f"{of['mean']:.4f}", f"{of['lowest']:.4f} - {of['highest']:.4f}"]
        for name, of in record["quality"]["update_errors"].items()
    ]
    return markdown(rows, ["moments", "relative error of the update", "over the steps"])


def sections(record: Record) -> Iterator[tuple[str, str]]:
    """Every generated part of the page, by name.

    Args:
        record: The record bench/results/formats.json.
    """
    where_timed = f"On {record['machine']['threads']} threads of a CPU, for {CASE}"
    yield "headline", f"{where_timed}, against a float32 step: {headline(record)}."
    yield "formats", _overview(record)
    yield "rivals", _rivals(record)
    yield "machine", where(record)
    yield "times", _times(record)
    yield "training", _training_text(record)
    yield "losses", _losses(record)
    yield "errors", _errors(record)
    yield "targets", targets_table(record["targets"], "github")
