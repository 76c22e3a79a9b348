"""What the benchmark makes of its figures: the page, the pictures, the comparison of two runs."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from PIL import Image

from bench import __main__ as bench
from bench import scaling
from bench.cases import elements
from bench.charts import digest, draw, draw_scaling
from bench.compare import compare
from bench.limit import LIMIT
from bench.page import page
from bench.timing import timings

RESULTS = Path(__file__).parents[1] / "bench" / "results"


@pytest.fixture
def record():
    return json.loads((RESULTS / "cpu.json").read_text())


def test_the_page_is_that_of_the_record(record):
    text = (RESULTS / "cpu.md").read_text()
    assert text == page(record)
    for picture in ("cpu.png", "cpu_scaling.png"):
        assert f"({picture})" in text
    record["seconds"]["GPT-2 124M"]["FusedRAdam"]["median"] *= 2
    assert page(record) != text


def test_the_pictures_are_drawn_from_the_record(record, tmp_path):
    cases = {case: timings(section) for case, section in record["seconds"].items()}
    sweeps = {
        sweep: {number: timings(section) for number, section in points.items()}
        for sweep, points in record["seconds_scaling"].items()
    }
    draw(cases, tmp_path / "cpu.png")
    draw_scaling(sweeps, tmp_path / "cpu_scaling.png")
    for name, shown in (("cpu.png", cases), ("cpu_scaling.png", sweeps)):
        kept, again = (Image.open(folder / name) for folder in (RESULTS, tmp_path))
        assert kept.text["Source"] == again.text["Source"] == digest(shown)["Source"]
        assert kept.size == again.size


def test_the_sweeps_change_one_thing_each():
    parameters, tensors, threads = scaling.sweeps().values()
    sizes = [elements(point.shapes) for point in parameters.values()]
    assert (sizes[0], sizes[-1]) == (10**4, 10**8)
    assert sizes == [int(number) for number in parameters]
    assert {len(point.shapes) for point in parameters.values()} == {1}
    assert {elements(point.shapes) for point in tensors.values()} == {4**11}
    assert [len(point.shapes) for point in tensors.values()] == [int(n) for n in tensors]
    assert {elements(point.shapes) for point in threads.values()} == {25_000_000}
    assert [point.threads for point in threads.values()] == [int(n) for n in threads]


def test_a_point_is_what_its_name_says(monkeypatch):
    timed = {}

    def run_once(steps, rounds, what):
        timed.update(threads=torch.get_num_threads(), rounds=rounds, names=list(steps))
        for step in steps.values():
            step()

    before = torch.get_num_threads()
    monkeypatch.setattr(scaling, "interleave", run_once)
    try:
        scaling._time_point("threads on one tensor of 25,000,000", "1")
    finally:
        torch.set_num_threads(before)
    assert timed == {"threads": 1, "rounds": 10, "names": [*scaling.SHOWN, LIMIT]}


def around(median, spread=0.01):
    quartiles = {"lower_quartile": 1 - spread, "median": 1, "upper_quartile": 1 + spread}
    return {name: median * factor for name, factor in quartiles.items()}


def results(commit="one", **seconds):
    case = {LIMIT: around(1.0), **{name: around(median) for name, median in seconds.items()}}
    point = {"1": {"ours": around(3.0)}}
    return {
        "machine": {"commit": commit, "processor": "p", "versions": {"torch": "2"}},
        "seconds": {"case": case},
        "seconds_flat": {"flat": {"ours": around(2.0)}},
        "seconds_scaling": {"threads": point},
    }


def told(before, after):
    """The rows of the comparison, by what they are of, and the other lines."""
    lines = compare(before, after).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    rows = [line.split() for line in lines[rule + 1 : -1]]
    return {row[1]: row[2:] for row in rows}, lines[: rule - 1], lines[-1]


def test_a_run_is_the_same_as_itself(record):
    rows, machines, rest = told(record, record)
    assert not rows
    assert not machines
    count = sum(map(len, [*record["seconds"].values(), *record["seconds_flat"].values()]))
    count += sum(len(of) for sweep in record["seconds_scaling"].values() for of in sweep.values())
    assert rest == f"{count} within the spread"


def test_what_left_its_spread_is_told():
    before = results(slow=1.0, quick=1.0, near=1.0, gone=1.0)
    after = results("two", slow=1.5, quick=0.5, near=1.015, new=1.0)
    rows, machines, rest = told(before, after)
    assert rows["slow"] == ["1000", "1500", "1.500", "slower", "1.500", "slower"]
    assert rows["quick"] == ["1000", "500", "0.500", "faster", "0.500", "faster"]
    assert rows["gone"] == ["1000", "gone"]
    assert rows["new"] == ["1000", "new"]
    assert set(rows) == {"slow", "quick", "gone", "new"}
    assert machines == ["commit: one before, two after"]
    assert rest == "4 within the spread"  # near, the limit, the flat case and the point


def test_a_wide_spread_excuses_a_large_change():
    before, after = results(ours=1.0), results(ours=1.5)
    for of in (before, after):
        of["seconds"]["case"]["ours"] = around(of["seconds"]["case"]["ours"]["median"], 0.3)
    assert not told(before, after)[0]


def test_a_slower_machine_is_told_from_a_slower_step():
    before = results(ours=1.0, theirs=1.0)
    slower = results(ours=2.0, theirs=2.0)
    slower["seconds"]["case"][LIMIT] = around(2.0)
    rows = told(before, slower)[0]
    for name in ("ours", "theirs"):
        assert rows[name] == ["1000", "2000", "2.000", "slower", "1.000"]
    # On a machine twice as fast a step that takes as long as before has become slower.
    faster = results(ours=1.0, theirs=0.5)
    faster["seconds"]["case"][LIMIT] = around(0.5)
    rows = told(before, faster)[0]
    assert rows["ours"] == ["1000", "1000", "1.000", "2.000", "slower"]
    assert rows["theirs"] == ["1000", "500", "0.500", "faster", "1.000"]


def test_the_comparison_by_command(tmp_path, capsys):
    paths = [tmp_path / f"{name}.json" for name in ("before", "after", "other")]
    for path, of in zip(paths, (results(x=1.0), results(x=2.0), {"machine": {}}), strict=True):
        path.write_text(json.dumps(of))
    bench.main(["--compare", *map(str, paths[:2])])
    assert "slower" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--compare", *map(str, paths[1:])])
    assert "other.json holds no results of make bench" in capsys.readouterr().err
