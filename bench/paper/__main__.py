"""Runs experiments: prints their tables, and writes JSON and a picture for each."""

import argparse
import json
import time
from pathlib import Path
from types import ModuleType

from matplotlib import pyplot

from bench.machine import IMAGES, machine
from bench.machine import RESULTS as ALL_RESULTS
from bench.style import save

from . import (
    amsgrad,
    exact_rectification,
    exactness,
    histogram,
    implementations,
    page,
    rectification,
    robustness,
    variance,
)

EXPERIMENTS: dict[str, ModuleType] = {
    "variance": variance,
    "rectification": rectification,
    "histogram": histogram,
    "robustness": robustness,
    "amsgrad": amsgrad,
    "exactness": exactness,
    "implementations": implementations,
    "exact_rectification": exact_rectification,
}
RESULTS = ALL_RESULTS / "paper"


def _rounded(results: object) -> object:
    """Round every number to six digits, to keep records small."""
    if isinstance(results, dict):
        return {key: _rounded(value) for key, value in results.items()}
    if isinstance(results, list | tuple):
        return [_rounded(value) for value in results]
    return float(f"{results:.6g}") if isinstance(results, float) else results


def picture(module: ModuleType, results: dict[str, object], path: Path) -> None:
    """Draw the results of an experiment into a file."""
    figure = pyplot.figure(figsize=module.SIZE, layout="constrained")
    module.draw(results, figure)
    save(figure, path, results)


def run(name: str, folder: Path) -> None:
    """Measure, record, draw and print one experiment."""
    module = EXPERIMENTS[name]
    print(f"\n{name}: {module.QUESTION} About {module.MINUTES} min on two cores.", flush=True)
    start = time.monotonic()
    results = _rounded(module.measure())
    record = {
        "command": f"python -m bench.paper {name}",
        "machine": machine(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    (folder / f"{name}.json").write_text(text + "\n")
    is_kept = folder.resolve() == RESULTS
    picture(module, results, (IMAGES if is_kept else folder) / f"{name}.png")
    table = module.table(results)
    if is_kept:
        page.put(name, table)
    print(f"\n{table}\n\nwritten: {folder / name}.json and {name}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    for name in EXPERIMENTS if "all" in options.names else options.names:
        run(name, options.out)


if __name__ == "__main__":
    main()
