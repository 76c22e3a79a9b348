"""Every file of examples/ runs at a small size. Its library must be installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
LIBRARIES = {"accelerate", "lightning", "peft", "timm", "transformers"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
WITHOUT_TORCHVISION = Path(__file__).parents[1] / "harness" / "without_torchvision.py"

pytestmark = pytest.mark.slow


def needed_by(path):
    return set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M)) & LIBRARIES


def run(path, folder, *more, launcher=()):
    for library in needed_by(path):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed: make examples installs it")
    before = [str(WITHOUT_TORCHVISION)] if "timm" in needed_by(path) else []
    command = [sys.executable, *launcher, *before, str(path), "--steps", "4", *more]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=300, env=os.environ | OFFLINE
    )


ALONE = [path for path in EXAMPLES if path.stem not in ("ddp", "fsdp2", "cuda_graph")]


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    done = run(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"loss \d+\.\d+", done.stdout), done.stdout


@pytest.mark.parametrize("stem", ["plain_loop", "bf16_masters"])
def test_a_run_resumes(stem, tmp_path):
    [path] = [path for path in EXAMPLES if path.stem == stem]
    assert "step 0:" in run(path, tmp_path).stdout
    done = run(path, tmp_path, "--steps", "60")  # the last --steps counts
    assert "step 0:" not in done.stdout
    assert "step 50:" in done.stdout


def test_two_processes_train_save_and_resume(tmp_path):
    [path] = [path for path in EXAMPLES if path.stem == "ddp"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    first = run(path, tmp_path, launcher=launcher)
    assert "at step 4" in first.stdout, first.stderr
    second = run(path, tmp_path, launcher=launcher)
    assert "at step 8" in second.stdout, second.stderr
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {s["step"].item() for s in saved["optimizer"]["state"].values()} == {8.0}


def test_a_sharded_run_resumes_on_other_numbers_of_processes(tmp_path):
    [path] = [path for path in EXAMPLES if path.stem == "fsdp2"]
    for count, end in ((2, 4), (3, 8), (1, 12)):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        done = run(path, tmp_path, launcher=launcher)
        assert f"at step {end}" in done.stdout, done.stderr
        assert f"rank {count - 1} steps by c" in done.stdout  # cpu or cuda
    # One process that was never sharded ends at the same loss.
    [loss] = re.findall(r"final loss (\S+)", done.stdout)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "1"]
    alone = run(path, tmp_path, "--steps", "12", "--checkpoint", "other", launcher=launcher)
    [expected] = re.findall(r"final loss (\S+)", alone.stdout)
    assert float(loss) == pytest.approx(float(expected), abs=2e-4)


def test_the_graph_needs_a_gpu_and_says_so(tmp_path):
    [path] = [path for path in EXAMPLES if path.stem == "cuda_graph"]
    done = run(path, tmp_path)
    assert done.returncode == 1
    assert "a CUDA graph needs a GPU" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_graph_runs_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(OFFLINE, "CUDA_VISIBLE_DEVICES", "0")
    [path] = [path for path in EXAMPLES if path.stem == "cuda_graph"]
    done = run(path, tmp_path)
    assert "final loss" in done.stdout, done.stderr


def test_every_example_is_named_in_the_documentation():
    docs = Path(__file__).parents[2] / "docs"
    text = "".join(page.read_text() for page in docs.glob("*.md"))
    assert all(f"examples/{path.name}" in text for path in EXAMPLES)
