"""The Python blocks of the README run, its commands exist, and its figures are recorded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = dict(
    enumerate(re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL), 1)
)
RIVALS = {
    name
    for timings in json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())[
        "seconds"
    ].values()
    for name in timings
}
COMMANDS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_python_block(block):
    subprocess.run([sys.executable, "-W", "error", "-c", BLOCKS[block]], check=True, timeout=120)


def test_there_are_blocks():
    assert len(BLOCKS) >= 5


def test_one_line_swap_runs_both_ways():
    import torch

    import radam_fused

    [diff] = re.findall(r"^```diff\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    names = {"torch": torch, "FusedRAdam": radam_fused.FusedRAdam, "model": torch.nn.Linear(2, 2)}
    for line in diff.splitlines():
        exec(line[1:], names)


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    lines = [line.partition("#")[0].strip() for block in COMMANDS for line in block.splitlines()]
    targets = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    [module] = [line for line in lines if line.startswith("python -m")]
    subprocess.run([sys.executable, *module.split()[1:]], check=True, capture_output=True)


def table_rows():
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| ")
    ]


def test_figures_are_the_recorded_ones():
    """The table of times and the targets agree with the records in bench/results."""
    record = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    rows = table_rows()
    [head] = [row for row in rows if row[0] == "ms per step"]
    assert head[1:] == list(record["seconds"])
    for i, case in enumerate(head[1:], 1):
        timings = record["seconds"][case]
        shown_times = {row[0]: row[i] for row in rows if len(row) == len(head) and row[0] in RIVALS}
        assert set(timings) <= set(shown_times)
        for rival, cell in shown_times.items():
            ms = f"{timings[rival]['median'] * 1e3:.2f}" if rival in timings else "not run"
            assert cell == ms, (case, rival)
    for what, timings in record["seconds_flat"].items():
        for name, timing in timings.items():
            assert [what, name, f"{timing['median'] * 1e3:.2f}"] in rows
    other = json.loads((ROOT / "bench" / "results" / "xeon.json").read_text())
    for target, there in zip(record["targets"], other["targets"], strict=True):
        shown = [*map(target.get, ("case", "against", "must be"))]
        for reached in (target, there):
            shown += [f"{reached['is']:.3f}", "reached" if reached["reached"] else "missed"]
        assert shown in rows
    for of in (record, other):
        assert of["machine"]["commit"] in README
        assert of["machine"]["processor"] in README


def test_gpu_figures_are_the_recorded_ones():
    """The ratios of device times agree with the record in bench/results."""
    cases = json.loads((ROOT / "bench" / "results" / "gpu.json").read_text())["cases"]
    ratios = [row for row in table_rows() if len(row) == 5 and row[0] in cases]
    assert {row[0] for row in ratios} == set(cases)
    for case, ours, other, _, ratio in ratios:
        medians = {name: t["device"]["median"] for name, t in cases[case]["seconds"].items()}
        assert ratio == f"{medians[ours] / medians[other]:.3f}", (case, ours, other)
        assert f"{cases[case]['elements']:,}" in README
