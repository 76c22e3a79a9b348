"""Fixtures for backends and instruction sets; marks slow tests and counts skipped ones."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

from .harness.backends import DEVICE_BACKENDS, CudaGrid

settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

HOST_BACKENDS = ["cuda-grid", "triton-ptx"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "eager", *HOST_BACKENDS])
def backend(request, monkeypatch):
    """The name of every backend; the device backends run on the host."""
    if request.param in DEVICE_BACKENDS:
        return DEVICE_BACKENDS[request.param](monkeypatch).name
    return request.param


BEST_SET, *OTHER_SETS = instruction_sets()


@pytest.fixture(
    params=[
        (BEST_SET, False),
        *(
            pytest.param((name, False), marks=[pytest.mark.slow] * (name != "baseline"))
            for name in OTHER_SETS
        ),
        pytest.param((BEST_SET, True), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"{param[0]}{'-prefetch' * param[1]}",
)
def instruction_set(request, monkeypatch):
    """Every build of the CPU kernel that this machine can run; the best one also with prefetch."""
    name, prefetch = request.param
    monkeypatch.setattr(CpuLaunch, "instruction_set", name)
    monkeypatch.setattr(CpuLaunch, "prefetch", prefetch)
    return name


@pytest.fixture(params=DEVICE_BACKENDS)
def device_backend(request, monkeypatch):
    """Every device backend: on the host, and on a GPU if there is one."""
    return DEVICE_BACKENDS[request.param](monkeypatch)


@pytest.fixture(params=["cuda-gpu", "triton-gpu"])
def gpu(request, monkeypatch):
    """Every device backend on a GPU, if there is one."""
    return DEVICE_BACKENDS[request.param](monkeypatch)


@pytest.fixture(params=HOST_BACKENDS)
def host_backend(request, monkeypatch):
    """Every device backend on the host."""
    return DEVICE_BACKENDS[request.param](monkeypatch)


@pytest.fixture
def grid(monkeypatch):
    """The CUDA backend on the host grid."""
    return CudaGrid(monkeypatch)


def pytest_terminal_summary(terminalreporter):
    """Sum up the skipped tests, one line per reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5} {reason}")


def pytest_collection_modifyitems(items):
    """Mark every test that executes PTX as slow."""
    for item in items:
        if re.search(r"\b(cuda|triton)-ptx\b", item.name):
            item.add_marker(pytest.mark.slow)
