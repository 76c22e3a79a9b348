"""The README and docs/: Python blocks run, commands exist, figures are recorded, links lead on."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import torch

import radam_fused
from bench import formats_page, page
from bench.paper.page import markdown
from radam_fused.benchmark.timing import timings, verdict
from radam_fused.options import OPTIONS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "bench" / "results"


def blocks(language):
    """The blocks of code in a language: page, title or None, and text."""
    for path in PAGES:
        pattern = rf'^```{language}(?: title="([^"\n]+)")?\n(.*?)^```'
        for title, text in re.findall(pattern, path.read_text(), re.M | re.S):
            yield path, title or None, text


def named(found):
    return [pytest.param(*entry, id=f"{entry[0].stem}-{i}") for i, entry in enumerate(found)]


PYTHON = list(blocks("python"))
WHOLE = [(path, text) for path, title, text in PYTHON if title is None]
LAUNCHED = [entry for entry in PYTHON if (entry[1] or "").startswith("torchrun ")]
PARTS = [entry for entry in PYTHON if entry[1] is not None and entry not in LAUNCHED]


# Runs each block with names of its own. One process for all: the import of torch takes seconds.
RUN = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
warnings.filterwarnings("ignore", "This instance was constructed with capturable")
for name, text in json.load(sys.stdin):
    print(name, flush=True)
    exec(compile(text, name, "exec"), {"__name__": "__main__"})
"""


def assert_run(found):
    texts = json.dumps([(f"{path.name}, block {i}", text) for i, (path, text) in enumerate(found)])
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, input=texts, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, [*done.stdout.splitlines()[-1:], done.stderr]
    assert done.stdout.count(", block ") == len(found)


@pytest.mark.slow
def test_every_python_block_runs():
    assert_run(WHOLE)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_blocks_for_a_gpu_run():
    found = [(path, text) for path, text in WHOLE if "cuda" in text]
    assert found
    assert_run(found)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "title", "text"), named(LAUNCHED))
def test_a_block_for_several_processes_runs(path, title, text, tmp_path):
    (tmp_path / "block.py").write_text(
        text + "assert getattr(optimizer, 'optim', optimizer).state\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", *title.split()[1:], "block.py"]
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | more, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("path", "title", "text"), named(PARTS))
def test_a_block_of_an_example_stands_in_it(path, title, text):
    assert text in (ROOT / title).read_text()


def test_there_are_blocks():
    assert len(WHOLE) >= 10
    assert len(PARTS) >= 5
    assert len(LAUNCHED) >= 4


@pytest.mark.parametrize(("path", "_", "text"), named(blocks("diff")))
def test_the_one_line_swap_runs_both_ways(path, _, text):
    names = {"torch": torch, "FusedRAdam": radam_fused.FusedRAdam, "model": torch.nn.Linear(2, 2)}
    for line in text.splitlines():
        exec(line[1:], names)


def commands():
    """The commands of shell blocks, and those in the first column of tables."""
    for _, _, text in blocks("sh"):
        yield from (line.partition("#")[0].strip() for line in text.splitlines())
    for path in PAGES:
        yield from re.findall(r"^\| `((?:make|python) [^`]+)` \|", path.read_text(), re.M)


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    found = set(filter(None, commands()))
    assert {"make demo", "make test", "python -m radam_fused"} <= found
    helps = {}
    for command in found:
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), command
        elif words[:2] == ["python", "-m"]:
            module = words[2]
            if module not in helps:
                shown = subprocess.run(
                    [sys.executable, "-m", module, "--help"], capture_output=True
                )
                helps[module] = shown.stdout.decode()
            assert helps[module].startswith("usage:"), command
            if module == "radam_fused":
                assert all(word in helps[module] for word in words[3:4]), command
        elif words[0] == "torchrun":
            assert (ROOT / words[-1]).exists(), command
        else:
            assert words[0] == "pip", command


def test_links_lead_to_files_and_headings():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), (path.name, target)
            if anchor:
                heads = re.findall(r"^#+ (.+)$", there.read_text(), re.M)
                anchors = {
                    re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in heads
                }
                assert anchor in anchors, (path.name, target)


def test_every_page_of_a_feature_ends_with_its_limitations():
    without = {"README", "api", "faq", "evidence"}
    for path in PAGES:
        if path.stem not in without:
            assert re.findall(r"^## (.+)$", path.read_text(), re.M)[-1] == "Limitations", path.name


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(p.name for p in PAGES[1:])


# Figures.


@pytest.fixture(scope="module")
def records():
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in page.RECORDS}


def part(path, name):
    [found] = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", path.read_text(), re.S)
    return found


def test_the_page_of_performance_agrees_with_the_records(records):
    sections = dict(page.sections(**records))
    for name, text in sections.items():
        assert part(page.PAGE, name) == text, name
    records["cpu"]["seconds"]["GPT-2 124M"]["FusedRAdam"]["median"] *= 2
    assert dict(page.sections(**records))["cases"] != sections["cases"]


def test_the_page_of_storage_formats_agrees_with_the_record():
    record = json.loads((RESULTS / "formats.json").read_text())
    sections = dict(formats_page.sections(record))
    for name, text in sections.items():
        assert part(formats_page.PAGE, name) == text, name
    record["seconds"][formats_page.CASE]["float32"]["median"] *= 2
    changed = dict(formats_page.sections(record))
    assert {name for name in sections if changed[name] != sections[name]} >= {"formats", "times"}


def test_the_readme_says_what_is_recorded():
    formats = json.loads((RESULTS / "formats.json").read_text())
    cpu = json.loads((RESULTS / "cpu.json").read_text())
    gpu = json.loads((RESULTS / "gpu.json").read_text())
    words = " ".join(README.read_text().split())
    assert page.headline(cpu) in words
    assert page.gpu_headline(gpu) in words
    assert formats_page.headline(formats) in words
    measured = timings(cpu["seconds"]["GPT-2 124M"])
    assert verdict(measured["FusedRAdam"], measured["torch RAdam"]).endswith("x faster")


def test_the_two_commands_take_what_is_recorded():
    steps = json.loads((RESULTS / "trial.json").read_text())["steps"]
    for command in ("make demo", "make test"):
        [row] = re.findall(rf"^\| `{command}` \|.*$", README.read_text(), re.M)
        minutes = math.ceil(steps[command]["seconds"] / 60)
        gigabytes = math.ceil(steps[command]["megabytes"] / 100) / 10
        assert f"| {minutes} minutes | {gigabytes:.1f} GB |" in row


def test_the_readme_is_short():
    assert len(README.read_text().split()) < 1000


def test_many_groups_cost_what_is_recorded():
    text = (ROOT / "docs" / "many-groups.md").read_text()
    record = json.loads((RESULTS / "structure.json").read_text())
    found = {(c["case"], c["compared"]): c for c in record["comparisons"]}
    case = "parameter groups, 1,000 tensors of 64x16"
    for compared in ("after: 1,000 groups / one group", "100 groups: after / torch AdamW fused"):
        one = found[case, compared]
        low, high = one["ratio_quartiles"]
        assert f"| {one['median_ratio']:.2f} ({low:.2f} - {high:.2f}) |" in text
    assert record["after"] in text


def test_the_table_of_options_agrees_with_the_declarations():
    rows = [[f"`{o.name}`", f"`{o.default}`", " ".join(o.doc.split())] for o in OPTIONS]
    text = markdown(rows, ["option", "default", "effect"])
    assert part(ROOT / "docs" / "api.md", "options") == text
