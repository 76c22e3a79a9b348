"""The option --out, which every command line of the benchmark has."""

import argparse
import os
from pathlib import Path

from .machine import RESULTS


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the results: by default $OUT, or bench/results."""
    out = os.environ.get("OUT", RESULTS)
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
