"""The runner of the checks on a GPU, and the names of the tests that it runs."""

import subprocess
import sys

import pytest

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")

from bench.machine import ROOT
from tests import gpu


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "OUT", tmp_path)


def test_a_check_that_fails_or_hangs_stops_no_other(tmp_path):
    hanging = "import time; print('begun', flush=True); time.sleep(1000)"
    checks = [
        gpu.Check("failing", ["-c", "raise SystemExit('broken')"]),
        gpu.Check("hanging", ["-c", hanging], 20),
        gpu.Check("good", ["-c", "import os; print(os.environ['GIVEN'])"], 60, {"GIVEN": "7"}),
    ]
    assert gpu.run_all(checks, at_once=3) == ["failing", "hanging"]
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert logs == {"failing": "broken\n", "hanging": "begun\n", "good": "7\n"}


def test_a_part_that_cannot_begin_stops_no_other(monkeypatch, capsys):
    def without(tool):
        raise FileNotFoundError(f"{tool}: not on PATH")

    done = []
    monkeypatch.setattr(gpu, "find_tool", without)
    monkeypatch.setitem(gpu.PARTS, "bench", lambda: done.append("bench") or [])
    monkeypatch.setattr(sys, "argv", ["gpu", "sanitize", "bench"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    assert done == ["bench"]
    printed = capsys.readouterr().out
    assert "sanitize: FileNotFoundError: compute-sanitizer: not on PATH" in printed
    assert printed.endswith("failed: sanitize\n")


def test_without_a_compiler_only_triton_is_built(monkeypatch):
    built = []
    monkeypatch.setattr(gpu, "run_all", lambda checks: built.extend(checks) or [])
    for has_compiler in (True, False):
        monkeypatch.setattr(gpu, "_has", lambda tool, has=has_compiler: has)
        gpu.build()
    assert [check.environment["RADAM_FUSED_CUDA"] for check in built] == ["1", "0"]


def collect(*nodes):
    command = [sys.executable, *gpu.PYTEST, "--collect-only", "-qq", *nodes]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_sanitized_tests_exist():
    nodes = [gpu.NODES[test].format(backend) for _, backend, test in gpu.SANITIZED]
    done = collect(*nodes)
    assert done.returncode == 0, done.stdout
    assert set(nodes) <= set(done.stdout.splitlines())
    missing = nodes[0].replace("-gpu-0]", "-gpu-1]")
    assert collect(missing).returncode == 4
