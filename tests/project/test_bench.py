"""The benchmark: its targets, its charts, the comparison of two runs, and its logic for a GPU."""

import json
import re
import shutil
import subprocess
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

import torch
from PIL import Image

from bench import __main__ as bench
from bench import cuda, machine, scaling, tune, variant
from bench.bandwidth_limit import LIMIT
from bench.cases import MANY, elements, within
from bench.charts import HEADLINE, draw, draw_headline, draw_scaling
from bench.compare import compare
from bench.cpu import IMAGES
from bench.rivals import (
    FLAT,
    FOREACH,
    FUSED_ADAMW,
    ONE_LAUNCH,
    OURS,
    ROUGHLY,
    SharedRivals,
)
from bench.style import digest
from bench.tables import Target, variants_table
from radam_fused.benchmark.timing import Timing, timings, wall_clock

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@pytest.fixture
def record():
    return json.loads((RESULTS / "cpu.json").read_text())


def test_the_charts_agree_with_the_record(record, tmp_path):
    cases = {case: timings(section) for case, section in record["seconds"].items()}
    sweeps = {
        sweep: {number: timings(section) for number, section in points.items()}
        for sweep, points in record["seconds_scaling"].items()
    }
    draw(cases, tmp_path / "cpu.png")
    draw_scaling(sweeps, tmp_path / "cpu_scaling.png")
    draw_headline(cases[HEADLINE], tmp_path / "headline.png")
    shown = {"cpu": cases, "cpu_scaling": sweeps, "headline": cases[HEADLINE]}
    for name, results in shown.items():
        kept, again = (Image.open(folder / f"{name}.png") for folder in (IMAGES, tmp_path))
        assert kept.text["Source"] == again.text["Source"] == digest(results)["Source"]
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


def test_a_point_has_the_shapes_and_threads_of_its_name(monkeypatch):
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


def changes(before, after):
    """The rows of a comparison by name, the lines about machines, and the last line."""
    lines = compare(before, after).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    rows = [line.split() for line in lines[rule + 1 : -1]]
    return {row[1]: row[2:] for row in rows}, lines[: rule - 1], lines[-1]


def test_compare_finds_no_change_between_a_run_and_itself(record):
    rows, machines, rest = changes(record, record)
    assert not rows
    assert not machines
    count = sum(map(len, [*record["seconds"].values(), *record["seconds_flat"].values()]))
    count += sum(len(of) for sweep in record["seconds_scaling"].values() for of in sweep.values())
    assert rest == f"{count} within the spread"


def test_compare_lists_changes_outside_the_quartiles():
    before = results(slow=1.0, quick=1.0, near=1.0, gone=1.0)
    after = results("two", slow=1.5, quick=0.5, near=1.015, new=1.0)
    rows, machines, rest = changes(before, after)
    assert rows["slow"] == ["1000", "1500", "1.500", "slower", "1.500", "slower"]
    assert rows["quick"] == ["1000", "500", "0.500", "faster", "0.500", "faster"]
    assert rows["gone"] == ["1000", "gone"]
    assert rows["new"] == ["1000", "new"]
    assert set(rows) == {"slow", "quick", "gone", "new"}
    assert machines == ["commit: one before, two after"]
    assert rest == "4 within the spread"  # near, the limit, the flat case and the point


def test_compare_ignores_changes_within_the_quartiles():
    before, after = results(ours=1.0), results(ours=1.5)
    for of in (before, after):
        of["seconds"]["case"]["ours"] = around(of["seconds"]["case"]["ours"]["median"], 0.3)
    assert not changes(before, after)[0]


def test_compare_separates_a_slower_machine_from_a_slower_step():
    before = results(ours=1.0, theirs=1.0)
    slower = results(ours=2.0, theirs=2.0)
    slower["seconds"]["case"][LIMIT] = around(2.0)
    rows = changes(before, slower)[0]
    for name in ("ours", "theirs"):
        assert rows[name] == ["1000", "2000", "2.000", "slower", "1.000"]
    # On a machine twice as fast a step that takes as long as before has become slower.
    faster = results(ours=1.0, theirs=0.5)
    faster["seconds"]["case"][LIMIT] = around(0.5)
    rows = changes(before, faster)[0]
    assert rows["ours"] == ["1000", "1000", "1.000", "2.000", "slower"]
    assert rows["theirs"] == ["1000", "500", "0.500", "faster", "1.000"]


def test_compare_on_the_command_line(tmp_path, capsys):
    paths = [tmp_path / f"{name}.json" for name in ("before", "after", "other")]
    for path, of in zip(paths, (results(x=1.0), results(x=2.0), {"machine": {}}), strict=True):
        path.write_text(json.dumps(of))
    bench.main(["--compare", *map(str, paths[:2])])
    assert "slower" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--compare", *map(str, paths[1:])])
    assert "other.json is not a cpu.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "bound", "is_share", "expected"),
    [
        (0.8, 1.0, False, "reached"),
        (0.99, 1.0, False, "level"),
        (1.01, 1.0, False, "level"),
        (1.2, 1.0, False, "missed"),
        (0.24, 0.2, False, "missed"),
        (0.16, 0.2, False, "reached"),
        (1.0, 0.9, True, "reached"),
        (1.06, 0.95, True, "level"),
        (1.3, 0.95, True, "missed"),
    ],
)
def test_a_target_is_level_where_the_quartiles_overlap(ours, bound, is_share, expected):
    target = Target("case", OURS, LIMIT, bound, is_share_of_bandwidth=is_share)
    checked = target.check(*(Timing(**around(median)) for median in (ours, 1.0)))
    assert checked["verdict"] == expected
    low, high = map(float, checked["spread"].split(" - "))
    assert low < checked["is"] < high


# The benchmark of a GPU, rehearsed on the host grid and with the clock of the CPU.

CLOCKS = {"device": wall_clock, "host": wall_clock}


def rehearse(rivals, shapes=((40, 16), (5,)), dtype=torch.float32):
    case = cuda.Case(lambda most: list(shapes), rivals, dtype)
    return cuda.time_case(case, "case", 10**9, "cpu", CLOCKS)


def test_a_case_on_a_gpu_is_measured_with_every_clock(grid):
    found = rehearse((OURS, FUSED_ADAMW, FOREACH, "torch Adam", FLAT))
    assert (found["elements"], found["tensors"], found["dtype"]) == (645, 2, "float32")
    names = {OURS, FUSED_ADAMW, FOREACH, "torch Adam", FLAT, LIMIT, cuda.COPY}
    assert set(found["seconds"]) == set(found["bytes_per_element"]) == names
    assert found["bytes_per_element"][OURS] == found["bytes_per_element"][LIMIT] == 28
    assert found["bytes_per_element"][cuda.COPY] == 8
    assert all(set(clocks) == set(CLOCKS) for clocks in found["seconds"].values())
    text = cuda.case_table("case", found, {"data_sheet_GB_per_s": 4800})
    assert text.splitlines()[0].startswith("case: 645 elements, 2 tensors")
    assert all(name in text for name in names)


def test_16_bit_parameters_move_fewer_bytes(grid):
    moved = rehearse((OURS, FUSED_ADAMW), dtype=torch.bfloat16)["bytes_per_element"]
    assert moved[OURS] == moved[LIMIT] == 22
    assert moved[FUSED_ADAMW] == 14


def test_an_optimizer_that_cannot_run_is_left_out(grid, monkeypatch):
    def fail(one):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(variant, "module", fail)
    with pytest.warns(UserWarning, match="rough division is left out: no compiler"):
        found = rehearse((OURS, ROUGHLY))
    assert ROUGHLY not in found["seconds"]
    assert OURS in found["seconds"]


def test_a_machine_without_a_cuda_compiler_has_no_limit_but_a_copy(grid, monkeypatch):
    def missing(arrays):
        raise FileNotFoundError("nvcc: not on PATH")

    monkeypatch.setattr(cuda, "limit", missing)
    with pytest.warns(UserWarning, match="read 4, write 3 is left out: nvcc: not on PATH"):
        found = rehearse((OURS,))
    assert set(found["seconds"]) == set(found["bytes_per_element"]) == {OURS, cuda.COPY}
    assert cuda.case_table("case", found, {})


def test_rivals_share_parameters_gradients_and_moments(grid):
    rivals = SharedRivals([(33,)], "cpu")
    [param] = rivals.params
    rivals.step(OURS)()
    [(exp_avg, _)] = rivals.moments(torch.float32)
    assert exp_avg.abs().sum() > 0
    before = param.detach().clone(), exp_avg.clone()
    rivals.step(FUSED_ADAMW)()
    assert not torch.equal(param, before[0])
    assert not torch.equal(exp_avg, before[1])
    [(arrays, _)] = rivals.moments(torch.float32)
    assert arrays is exp_avg


def test_results_are_written_after_each_case_and_a_failure_stops_none(
    tmp_path, monkeypatch, capsys
):
    times = {"device": around(1.0), "host": around(2.0)}
    measured = {"elements": 1, "tensors": 1, "seconds": {OURS: times, FUSED_ADAMW: times}}
    measured["bytes_per_element"] = {OURS: 28, FUSED_ADAMW: 28}
    seen = []

    def run(name, seconds):
        assert seconds <= cuda.SECONDS
        seen.append(set(json.loads(path.read_text())["cases"]) if path.exists() else set())
        if name == "broken":
            raise RuntimeError("out of memory")
        return measured

    monkeypatch.setattr(cuda, "new_record", lambda: {"machine": {}, "cases": {}})
    monkeypatch.setattr(cuda, "most_elements", lambda: 10)
    monkeypatch.setattr(cuda, "in_a_process", lambda function, most: run)
    path = tmp_path / "new" / "gpu.json"
    assert cuda.measure(path.parent, [cuda.FLAT_1B, "broken", MANY]) == ["broken"]
    assert seen == [set(), {cuda.FLAT_1B}, {cuda.FLAT_1B}]
    written = json.loads(path.read_text())
    assert set(written["cases"]) == {cuda.FLAT_1B, MANY}
    assert cuda.measure(path.parent, [MANY], seconds=0) == [MANY]
    by_case = {target["case"]: target for target in written["targets"]}
    assert by_case[cuda.FLAT_1B]["is"] == 1.0
    assert (by_case[MANY]["must be"], by_case[MANY]["verdict"]) == ("<= 0.20", "missed")
    printed = capsys.readouterr().out
    assert "broken failed: RuntimeError: out of memory" in printed
    assert f"{MANY} failed: TimeoutError: no time is left of 0 s" in printed


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of torch.compile's import
@pytest.mark.parametrize("most", [10**7, 10**9])
def test_every_case_on_a_gpu_fits_its_size_and_names_known_rivals(most, grid):
    known = SharedRivals([(3,)], "cpu")
    for name, case in {**cuda.CASES, **cuda.COMPILED_CASES}.items():
        shapes = case.shapes(most)
        assert elements(shapes) <= max(most, 3 * 10**7), name
        for rival in {*case.rivals} - {ROUGHLY, ONE_LAUNCH}:
            if not any(text in rival for text in ("graph", "capturable", "Triton")):
                assert callable(known.step(rival))
    for target in cuda.TARGETS:
        assert target.rival in {LIMIT, *(cuda.CASES | cuda.COMPILED_CASES)[target.case].rivals}


def test_a_tool_outside_of_path_is_found(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "nvcc"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="nvcc-99: not on PATH"):
        machine.find_tool("nvcc-99")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert machine.find_tool("nvcc") == str(tool)


def test_the_commit_is_unknown_without_git(monkeypatch):
    def missing(name):
        raise FileNotFoundError(name)

    assert machine.commit() != "unknown"
    monkeypatch.setattr(machine, "find_tool", missing)
    assert machine.commit() == "unknown"


def test_a_variant_that_exists_is_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(variant, "BUILD", tmp_path)
    monkeypatch.setattr(machine, "find_tool", lambda name: pytest.fail("built again"))
    library = tmp_path / "roughly" / f"_C{EXTENSION_SUFFIXES[0]}"
    library.parent.mkdir()
    library.touch()
    assert variant.library(variant.ROUGHLY) == str(library)


def test_variants_are_timed_against_the_kernels_in_use(grid, monkeypatch):
    monkeypatch.setattr(variant, "module", lambda one: grid.module)
    monkeypatch.setitem(tune.CASES, "small", (lambda most: [(40, 16), (5,)], torch.float32))
    with pytest.warns(UserWarning, match=r"triton, .* is left out: "):
        found = tune.time_case("small", 10**6, "cpu", wall_clock)
    assert (found["elements"], found["tensors"], found["dtype"]) == (645, 2, "float32")
    names = {f"cuda, {name}" for name in (tune.IN_USE, *(one.name for one in tune.CUDA))}
    assert set(found["seconds"]) == names
    text = variants_table("small", found, tune.IN_USE)
    [row] = [line for line in text.splitlines() if line.startswith("cuda, in use")]
    assert row.endswith("1.000")


def test_the_folders_of_variants_differ():
    folders = {one.folder for one in (variant.ROUGHLY, *tune.CUDA)}
    assert len(folders) == 1 + len(tune.CUDA)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("one", [variant.ROUGHLY, *tune.CUDA], ids=lambda one: one.name)
def test_a_variant_compiles_without_spills(one, tmp_path):
    source = ROOT / "csrc" / "cuda" / "step_kernels.cu"
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-DRADAM_PARAM=float"]
    command += [f"-D{constant}" for constant in one.constants]
    command += one.rounding or ["--fmad=false"]
    command += ["-cubin", source, "-o", tmp_path / "step.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_limit_of_a_gpu_compiles(tmp_path):
    source = ROOT / "bench" / "bandwidth_limit.cu"
    command = ["nvcc", "-arch=sm_90", "-cubin", source, "-o", tmp_path / "limit.cubin"]
    assert subprocess.run(command).returncode == 0


def test_a_case_is_cut_to_the_size_that_fits():
    assert within([(3,), (2, 2), (5,)], 8) == [(3,), (2, 2)]
    assert within([(3,), (2, 2)], 7) == [(3,), (2, 2)]
