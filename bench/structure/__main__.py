"""Compares the step of this checkout with that of another commit and of torch's optimizers."""

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from .cases import AFTER, BEFORE, COUNTED, LATE, TIMED
from .checkout import check_out, describe, resolve
from .measure import count_case, machine_of, time_case
from .others import Others
from .package import CHECKOUT, copy_package
from .page import page, table


def measure(cases: list[str], before: str, after: Path, pairs: int, folder: Path) -> None:
    """Run the cases and write the results into a folder.

    Args:
        cases: Keys of TIMED, or COUNTED.
        before: The commit to compare with.
        after: The root of the other side.
        pairs: How often each subject is timed.
        folder: Where the results go.
    """
    commit = resolve(before)
    with TemporaryDirectory() as copies:
        # Copied once, so that all measurements use the same state of the files.
        roots = {AFTER: Path(copies) / AFTER, BEFORE: Path(copies) / BEFORE}
        copy_package(after, roots[AFTER])
        copy_package(check_out(commit), roots[BEFORE])
        where = machine_of(roots[AFTER])
        record = {
            "machine": where,
            "before": commit,
            "after": where["commit"] if after == CHECKOUT else describe(after),
            "pairs": pairs,
        }
        print(f"{where['processor']}, {where['threads']} threads, commit {record['after']}")
        comparisons = []
        for case in cases:
            others = Others()
            found = count_case(roots) if case == COUNTED else time_case(case, roots, pairs)
            cores = round(others.cores(), 2)
            print(f"\n{table(found)}\ncores that other processes kept busy: {cores}", flush=True)
            comparisons += [comparison | {"cores_of_others": cores} for comparison in found]
    record["comparisons"] = comparisons
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "structure.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "structure.md").write_text(page(record))
    missed = [f"{c['case']}: {c['compared']}" for c in comparisons if c["reached"] is False]
    print("\nmissed: " + ("; ".join(missed) or "no target"))
    print(f"written: structure.json and structure.md in {folder}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.structure", description=__doc__)
    default = os.environ.get("OUT", CHECKOUT / "bench" / "results")
    parser.add_argument("--before", required=True, metavar="COMMIT", help="what to compare with")
    parser.add_argument(
        "--after",
        type=Path,
        default=CHECKOUT,
        metavar="ROOT",
        help="checkout with the extension built in place, by default this one",
    )
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    parser.add_argument("--pairs", type=int, default=40, help=f"30 to {LATE}, by default 40")
    parser.add_argument(
        "--case", nargs="+", default=[""], metavar="NAME", help="only cases with this in their name"
    )
    options = parser.parse_args(arguments)
    if not 30 <= options.pairs <= LATE:
        parser.error(f"--pairs must be from 30 to {LATE}")
    every = [*TIMED, COUNTED]
    cases = [case for case in every if any(name in case for name in options.case)]
    if not cases:
        parser.error("no such case; there are: " + "; ".join(every))
    measure(cases, options.before, options.after.resolve(), options.pairs, options.out)


if __name__ == "__main__":
    main()
