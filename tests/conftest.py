"""Fixtures for backends and instruction sets; marks slow tests and counts skipped ones."""

import re
from collections import Counter, defaultdict

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

from .harness import helpers
from .harness.backends import DEVICE_BACKENDS, IS_REHEARSAL, CudaGrid, cuda_ptx, triton_ptx

settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

HOST_BACKENDS = ["cuda-grid", "triton-ptx"]


@pytest.fixture
def meshes():
    """A mesh of four processes, of which only this one runs; nothing is communicated."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("other", "own"))
    dist.destroy_process_group()


@pytest.fixture
def mesh(meshes):
    """Two of these processes."""
    return meshes["own"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _bits_of_the_interpreter(request, monkeypatch):
    """Triton's interpreter, which a rehearsal uses, rounds differently from a GPU."""
    if IS_REHEARSAL and "triton-gpu" in request.node.name:
        monkeypatch.setattr(
            helpers, "same_bits", lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape)
        )


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


@pytest.fixture(params=[cuda_ptx, triton_ptx], ids=["cuda-ptx", "triton-ptx"])
def ptx(request, monkeypatch):
    """A device backend, executed from its PTX."""
    return request.param(monkeypatch)


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Mark every test that executes PTX as slow. A rehearsal runs each test twice per backend."""
    if IS_REHEARSAL:
        assert torch.cuda.is_available(), "the stand-in for a GPU is missing"
        found = defaultdict(list)
        for item in items:
            backend = re.search(r"(cuda|triton)-gpu", item.name)
            found[item.path, item.originalname, backend and backend[0]].append(item)
        for item in items:
            if "triton-gpu" in item.name:  # the interpreter computes with NumPy
                item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
        items[:] = [item for g in found.values() for item in dict.fromkeys((g[0], g[len(g) // 2]))]
    for item in items:
        if re.search(r"\b(cuda|triton)-ptx\b", item.name):
            item.add_marker(pytest.mark.slow)
