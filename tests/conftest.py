import pytest
import torch
from hypothesis import HealthCheck, settings

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

from .engines import ENGINES, CudaGrid, TritonInterpreter

settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "eager", "cuda-grid", "triton-interpreter"])
def backend(request, monkeypatch):
    """Every backend, those for devices on the host."""
    if request.param in ENGINES:
        return ENGINES[request.param](monkeypatch).backend
    return request.param


@pytest.fixture(params=instruction_sets())
def instruction_set(request, monkeypatch):
    """Every build of the CPU kernel that this machine runs."""
    monkeypatch.setattr(CpuLaunch, "instruction_set", request.param)
    return request.param


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """An engine for devices: on the host, and on a GPU where there is one."""
    return ENGINES[request.param](monkeypatch)


@pytest.fixture(params=["cuda-gpu", "triton-gpu"])
def gpu(request, monkeypatch):
    """An engine on a GPU, where there is one."""
    return ENGINES[request.param](monkeypatch)


@pytest.fixture(params=[CudaGrid, TritonInterpreter], ids=["cuda-grid", "triton-interpreter"])
def host_engine(request, monkeypatch):
    """An engine for devices on the host."""
    return request.param(monkeypatch)


@pytest.fixture
def grid(monkeypatch):
    """The CUDA engine's grid on the host."""
    return CudaGrid(monkeypatch)


@pytest.fixture
def interpreter(monkeypatch):
    """The Triton engine's kernels, interpreted."""
    return TritonInterpreter(monkeypatch)
