"""Writes the table and the page of the comparisons."""

from typing import Any

from tabulate import tabulate

from .measure import BATCHES


def _ms(quartiles: list[float]) -> str:
    lower, median, upper = quartiles
    return f"{median:.4g} ({lower:.4g} - {upper:.4g})"


def _row(comparison: dict[str, Any]) -> list[str]:
    target, reached = comparison["target"], comparison["reached"]
    word = {None: "", True: "yes", False: "no"}[reached]
    head = [comparison["case"], comparison["compared"]]
    if "count" in comparison:
        bound = "" if target is None else f"<= {target}"
        return [*head, str(comparison["count"]), bound, word, *[""] * 5]
    batches = comparison["median_ratio_of_each_batch"]
    return [
        *head,
        f"{comparison['median_ratio']:.3f}",
        "" if target is None else f"<= {target:.2f}",
        word,
        "{:.3f} - {:.3f}".format(*comparison["ratio_quartiles"]),
        f"{min(batches):.3f} - {max(batches):.3f}",
        f"{comparison['ratio_of_medians']:.3f}",
        _ms(comparison["numerator_ms"]),
        _ms(comparison["denominator_ms"]),
    ]


def table(comparisons: list[dict[str, Any]], tablefmt: str = "simple") -> str:
    """One line per comparison."""
    head = ["case", "compared", "ratio", "target", "reached", "quartiles of the ratio"]
    head += ["medians of the batches", "ratio of the medians", "the first, ms", "the second, ms"]
    rows = [_row(comparison) for comparison in comparisons]
    return str(tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True))


def page(record: dict[str, Any]) -> str:
    """The page of a record in the form of structure.json."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    busiest = max(comparison["cores_of_others"] for comparison in record["comparisons"])
    return f"""# The step of this commit against the step of another

By `python -m bench.structure --before {record["before"]}` on {machine["date"]}: commit
{record["after"]} is "after", commit {record["before"]} is "before". {machine["processor"]},
{machine["threads"]} threads, {machine["instruction_set"]}, Python {machine["python"]}, {versions}.

"After" and "before" run in a process each; torch's optimizers run in the process of "after". What
one case compares takes turns, {record["pairs"]} times, in an order that chance draws, in
{BATCHES} batches. Each batch has new processes and new copies of the package, because two copies
of the same package can differ in time. Before each timed step there are a pause of 20 ms and
untimed steps, at least one and for at least 10 ms. The ratio is the median of the ratios of all
turns, and the target is for this ratio. Times are medians, with quartiles in parentheses. Other
processes kept at most {busiest} cores busy during a case. All numbers are in
[structure.json](structure.json).

{table(record["comparisons"], "github")}
"""
