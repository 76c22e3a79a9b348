"""Times every case with every optimizer, prints the tables, and writes the results."""

import argparse
import json
import sys
from pathlib import Path

from .compare import compare
from .options import add_folder


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_folder(parser)
    parser.add_argument("--case", action="append", default=[], help="only this case (cuda)")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (cuda)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit (cuda)")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="two cpu.json: print what became slower or faster, and measure nothing",
    )
    options = parser.parse_args(arguments)
    if options.compare:
        records = [json.loads(path.read_text()) for path in options.compare]
        for path, record in zip(options.compare, records, strict=True):
            if "seconds_flat" not in record:
                parser.error(f"{path} is not a cpu.json, expected a record with seconds_flat")
        print(compare(*records))
    elif options.device == "cuda":
        from . import cuda

        known = [*cuda.CASES, *cuda.COMPILED_CASES]
        for case in options.case:
            if case not in known:
                parser.error(f"unknown case {case!r}, expected one of {', '.join(known)}")
        compiled = not options.no_compile
        if cuda.measure(options.out, options.case, compiled, options.seconds):
            sys.exit(1)
    else:
        from . import cpu

        cpu.measure(options.out)


if __name__ == "__main__":
    main()
