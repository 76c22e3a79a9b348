"""Runs a benchmark that has a section on the page, and saves its record."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radam_fused.benchmark.timing import timings

from .machine import RESULTS
from .options import add_folder
from .page import write
from .tables import table, targets_table


def save(name: str, record: dict[str, Any], folder: Path) -> None:
    """Print the tables of a record and write it, and the page about bench/results.

    Args:
        name: Of the file, without its suffix.
        record: The machine, the seconds of each case, and the checked targets.
        folder: Folder of the results.
    """
    for case, section in record["seconds"].items():
        print(f"\n{table(case, timings(section))}")
    print(f"\n{targets_table(record['targets'])}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    if folder.resolve() == RESULTS:
        write(folder)
    print(f"\nwritten: {name}.json in {folder}")


def run(name: str, description: str | None, measure: Callable[[Path], None]) -> None:
    """Run the command line of a benchmark whose only option is the folder."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    add_folder(parser)
    measure(parser.parse_args().out)
