import pytest
import torch
from hypothesis import HealthCheck, settings

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

from .harness.backends import ENGINES, CudaGrid

settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

ON_THE_HOST = ["cuda-grid", "triton-ptx"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "eager", *ON_THE_HOST])
def backend(request, monkeypatch):
    """Every backend, those for devices on the host."""
    if request.param in ENGINES:
        return ENGINES[request.param](monkeypatch).backend
    return request.param


@pytest.fixture(
    params=[*((name, False) for name in instruction_sets()), (instruction_sets()[0], True)],
    ids=lambda param: f"{param[0]}{'-prefetch' * param[1]}",
)
def instruction_set(request, monkeypatch):
    """Every build of the CPU kernel that this machine runs, the best one with prefetches too."""
    name, prefetch = request.param
    monkeypatch.setattr(CpuLaunch, "instruction_set", name)
    monkeypatch.setattr(CpuLaunch, "prefetch", prefetch)
    return name


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """A backend for devices: on the host, and on a GPU where there is one."""
    return ENGINES[request.param](monkeypatch)


@pytest.fixture(params=["cuda-gpu", "triton-gpu"])
def gpu(request, monkeypatch):
    """A backend on a GPU, where there is one."""
    return ENGINES[request.param](monkeypatch)


@pytest.fixture(params=ON_THE_HOST)
def host_engine(request, monkeypatch):
    """A backend for devices on the host."""
    return ENGINES[request.param](monkeypatch)


@pytest.fixture
def grid(monkeypatch):
    """The CUDA backend's grid on the host."""
    return CudaGrid(monkeypatch)
