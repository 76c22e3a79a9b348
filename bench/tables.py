"""The tables and the targets of the benchmark."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from radam_fused.benchmark.limit import BYTES
from radam_fused.benchmark.timing import Timing, timings, verdict

from .bandwidth_limit import LIMIT
from .cases import MANY, Shapes, elements
from .flat_buffers import AS_ONE, FLAT, READING
from .rivals import OURS

Results = dict[str, dict[str, Timing]]
Columns = Mapping[str, Callable[[str, Timing], str]]


class Target(NamedTuple):
    """A bound on the quotient of two times.

    Attributes:
        case: The case.
        ours: The optimizer.
        rival: The optimizer, or the limit, that its time is divided by.
        bound: The largest quotient.
        clock: The clock of both times.
        is_share_of_bandwidth: Whether the bound is the smallest share of the limit's bandwidth.
    """

    case: str
    ours: str
    rival: str
    bound: float
    clock: str = "device"
    is_share_of_bandwidth: bool = False

    def check(self, ours: Timing, rival: Timing, against: str = "") -> dict[str, object]:
        """The bound, the figure with its spread, and the verdict on the largest allowed time.

        Args:
            ours: Our time.
            rival: The rival's time.
            against: What the table calls the rival; its name by default.
        """
        low, median, high = (a / b for a, b in zip(ours, reversed(rival), strict=True))
        sign, factor = "<=", self.bound
        if self.is_share_of_bandwidth:
            low, median, high = 1 / high, 1 / median, 1 / low
            sign, factor = ">=", 1 / self.bound
        compared = verdict(ours, Timing(*(factor * quartile for quartile in rival)))
        judged = {"level": "level", "faster": "reached", "slower": "missed"}
        return {
            "case": self.case,
            "against": against or self.rival,
            "must be": f"{sign} {self.bound:.2f}",
            "is": round(median, 4),
            "spread": f"{low:.3f} - {high:.3f}",
            "verdict": judged[compared.rpartition(" ")[2]],
        }


CPU_TARGETS = [
    Target("GPT-2 124M", OURS, "torch AdamW fused", 1.00),
    Target("GPT-2 124M", OURS, "torch RAdam", 0.25),
    Target("GPT-2 124M", OURS, "torch.compile of RAdam", 0.60),
    Target("GPT-2 124M", OURS, LIMIT, 0.93, is_share_of_bandwidth=True),
    Target("one 25M tensor", OURS, "torch AdamW fused", 1.00),
    Target("one 25M tensor", OURS, LIMIT, 0.95, is_share_of_bandwidth=True),
    Target(MANY, OURS, "torch AdamW fused", 0.20),
    Target(MANY, OURS, "torch RAdam", 0.06),
]


def cpu_targets(results: Results) -> list[dict[str, object]]:
    """The targets on the CPU, with the measured figures."""
    return [t.check(results[t.case][t.ours], results[t.case][t.rival]) for t in CPU_TARGETS]


def flat_target(measured: Mapping[str, Timing]) -> dict[str, object]:
    """The target of flat buffers: at most one tensor's step and the reading of the addresses."""
    parts = zip(measured[AS_ONE], measured[READING], strict=True)
    both = Timing(*(one + reading for one, reading in parts))
    target = Target(f"{MANY}, flatten=True", FLAT, "one tensor and reading the addresses", 1.0)
    return target.check(measured[FLAT], both)


def check_targets(
    targets: Iterable[Target], cases: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, object]]:
    """The targets whose times are in the cases of a record with clocks."""
    checked = []
    for target in targets:
        seconds = cases.get(target.case, {}).get("seconds", {})
        if target.ours in seconds and target.rival in seconds:
            ours, rival = (
                Timing(**seconds[name][target.clock]) for name in (target.ours, target.rival)
            )
            against = f"{target.clock} time of {target.ours} / {target.rival}"
            checked.append(target.check(ours, rival, against))
    return checked


def targets_table(checked: Sequence[Mapping[str, object]], tablefmt: str = "simple") -> str:
    """One line per target."""
    return str(tabulate(checked, headers="keys", floatfmt=".3f", tablefmt=tablefmt))


def table(
    title: str,
    measured: Mapping[str, Timing],
    columns: Columns = {},  # noqa: B006
    tablefmt: str = "simple",
    digits: str = ".4g",
) -> str:
    """One line per step: its time, its quartiles, and further columns."""
    rows = [
        [
            name,
            f"{t.median * 1e3:{digits}}",
            f"{t.lower_quartile * 1e3:{digits}} - {t.upper_quartile * 1e3:{digits}}",
            *(column(name, t) for column in columns.values()),
        ]
        for name, t in measured.items()
    ]
    head = [title, "ms", "quartiles", *columns]
    return tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True)


def fastest_first(measured: Mapping[str, Timing]) -> dict[str, Timing]:
    return dict(sorted(measured.items(), key=lambda item: item[1].median))


def cpu_table(
    case: str, measured: dict[str, Timing], shapes: Shapes, tablefmt: str = "simple"
) -> str:
    """The optimizers of a case on the CPU, the fastest first."""
    size, limit, ours = elements(shapes) * BYTES / 1e9, measured[LIMIT], measured[OURS]
    columns: Columns = {
        "GB/s": lambda _, t: f"{size / t.median:.1f}",
        "of the limit": lambda _, t: f"{limit.median / t.median:.3f}",
        f"{OURS} is": lambda name, t: "" if name in (OURS, LIMIT) else verdict(ours, t),
    }
    return table(case, fastest_first(measured), columns, tablefmt)


def case_table(name: str, case: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """The optimizers of a case on a GPU, from a record, the fastest first."""
    clocks = {clock for seconds in case["seconds"].values() for clock in seconds}
    times = {
        clock: timings({step: seconds[clock] for step, seconds in case["seconds"].items()})
        for clock in clocks
    }
    device, host = times["device"], times["host"]
    peak = machine.get("data_sheet_GB_per_s")
    bandwidth = {
        step: case["elements"] * case["bytes_per_element"][step] / 1e9 / t.median
        for step, t in device.items()
    }
    columns: dict[str, Callable[[str, Timing], str]] = {
        "GB/s": lambda step, _: f"{bandwidth[step]:.0f}",
        "of the data sheet": lambda step, _: f"{bandwidth[step] / peak:.3f}" if peak else "",
        "host ms": lambda step, _: f"{host[step].median * 1e3:.4g}",
        "ours / this": lambda _, t: (
            f"{device[OURS].median / t.median:.3f}" if OURS in device else ""
        ),
    }
    title = f"{name}: {case['elements']:,} elements, {case['tensors']} tensors"
    return table(title, fastest_first(device), columns)


def scaling_table(
    sweep: str, points: dict[str, dict[str, Timing]], tablefmt: str = "simple"
) -> str:
    """One line per number of a sweep: medians and quartiles in ms, and the verdicts."""
    names = list(next(iter(points.values())))
    rivals = [name for name in names if name not in (OURS, LIMIT)]
    rows = [
        [
            f"{int(number):,}",
            *(_with_quartiles(measured[name]) for name in names),
            *(verdict(measured[OURS], measured[name]) for name in rivals),
        ]
        for number, measured in points.items()
    ]
    head = [
        sweep,
        *(f"{name}, ms" for name in names),
        *(f"{OURS} against {name}" for name in rivals),
    ]
    return str(tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True))


def _with_quartiles(timing: Timing) -> str:
    low, median, high = (f"{seconds * 1e3:.3g}" for seconds in timing)
    return f"{median} ({low} - {high})"


def variants_table(name: str, case: Mapping[str, Any], in_use: str) -> str:
    """The variants of a case of bench/tune.py, against the one in use of the same backend."""
    measured = timings(case["seconds"])

    def ratio(variant: str, t: Timing) -> str:
        backend = variant.partition(", ")[0]
        return f"{t.median / measured[f'{backend}, {in_use}'].median:.3f}"

    title = f"{name}: {case['elements']:,} elements, {case['tensors']} tensors"
    return table(title, fastest_first(measured), {f"/ {in_use}": ratio})
