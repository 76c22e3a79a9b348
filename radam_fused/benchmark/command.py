"""python -m radam_fused bench: the step of FusedRAdam against torch's, on this machine."""

import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from ..report import automatic, processor
from .limit import BYTES, COPY, LIMIT, copy, move
from .models import MODELS, Shapes, elements, shapes_in, shapes_of
from .rivals import OURS, SharedTensors, usual
from .timing import Clock, Step, Timing, device_clock, interleave, verdict, wall_clock

_HELD = 48  # bytes per element: tensors, the limit's arrays, temporaries of torch RAdam
_WARM_UP = 6  # steps: the first rectified one, with the default betas
_SECONDS = 25.0  # for the rounds
_ROUNDS = (7, 201)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of the command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--model",
        default="gpt2",
        help=f"shapes of a model: {', '.join(MODELS)}; /N divides its widths (default: gpt2)",
    )
    what.add_argument(
        "--shapes",
        nargs="+",
        type=Path,
        metavar="FILE.safetensors",
        help="shapes of the tensors in files of weights",
    )


def free_bytes(device: str) -> int:
    """Bytes of memory that are free for new tensors."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _check_memory(shapes: Shapes, device: str) -> None:
    needed = elements(shapes) * _HELD
    if needed > (free := free_bytes(device)):
        raise ValueError(
            f"{elements(shapes):,} parameters need {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB "
            f"are free; llama3-8b/8, for example, needs 6 GB"
        )


def _limit(shapes: Shapes, device: str) -> tuple[str, Step, float]:
    """The name of the limit, the limit, and the part of a step's bytes that it moves."""
    if device == "cuda":
        return COPY, *copy(elements(shapes) * BYTES, device)
    return LIMIT, move([torch.zeros(elements(shapes)) for _ in range(4)]), 1.0


def measure(shapes: Shapes, device: str, seconds: float = _SECONDS) -> dict[str, Timing]:
    """Time the optimizers and the limit.

    Args:
        shapes: Shapes of the parameters, which are float32.
        device: Device of the parameters.
        seconds: What the rounds take, about.

    Returns:
        Seconds per step. The first is the limit.
    """
    clock: Clock = device_clock if device == "cuda" else wall_clock
    name, limit, part = _limit(shapes, device)
    steps = {name: limit, **usual(SharedTensors(shapes, device))}
    one = interleave(steps, 2, "warm-up", clock, _WARM_UP)
    round_seconds = sum(timing.median for timing in one.values())
    least, most = _ROUNDS
    rounds = min(most, max(least, int(seconds / round_seconds)))
    timings = interleave(steps, rounds, "rounds", clock, warm_up=0)
    timings[name] = Timing(*(quartile / part for quartile in timings[name]))
    return timings


def table(timings: dict[str, Timing], size: int) -> str:
    """One line per optimizer: ms, quartiles, GB/s, the share of the limit, and the verdict.

    Args:
        timings: What `measure` returns.
        size: Bytes that a step reads and writes in total.
    """
    from tabulate import tabulate

    limit = next(iter(timings))
    rows = [
        [
            name,
            f"{t.median * 1e3:.4g}",
            f"{t.lower_quartile * 1e3:.4g} - {t.upper_quartile * 1e3:.4g}",
            f"{size / t.median / 1e9:.1f}",
            f"{timings[limit].median / t.median:.0%}",
            "" if name in (limit, OURS) else verdict(timings[OURS], t),
        ]
        for name, t in timings.items()
    ]
    head = ["", "ms", "quartiles", "GB/s", "of the limit", f"{OURS} is"]
    return str(tabulate(rows, head, disable_numparse=True))


def run(options: Namespace) -> None:
    """Time the optimizers and print the table.

    Raises:
        ValueError: The shapes are not available, or do not fit into memory.
        OSError: A file of weights cannot be read.
    """
    shapes = shapes_in(options.shapes) if options.shapes else shapes_of(options.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_memory(shapes, device)
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    what = ", ".join(p.name for p in options.shapes) if options.shapes else options.model
    size = elements(shapes) * BYTES
    print(f"{where}{threads}, torch {torch.__version__}, backend {automatic(device)}")
    print(f"{what}: {elements(shapes):,} float32 parameters in {len(shapes):,} tensors;", end=" ")
    print(f"a step reads and writes {size / 1e9:.3g} GB", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timings = measure(shapes, device)
    print(f"\n{table(timings, size)}", flush=True)
