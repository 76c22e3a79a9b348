import pytest
import torch
from hypothesis import HealthCheck, settings

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

from .cuda_engines import Gpu, HostGrid, gpu_is_missing

settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "eager"])
def backend(request):
    """Every backend that runs here."""
    return request.param


@pytest.fixture(params=instruction_sets())
def instruction_set(request, monkeypatch):
    """Every build of the CPU kernel that this machine runs."""
    monkeypatch.setattr(CpuLaunch, "instruction_set", request.param)
    return request.param


@pytest.fixture(params=["grid", "gpu"])
def engine(request, monkeypatch):
    """The CUDA engine: its grid on the host, and on a GPU where there is one."""
    if request.param == "grid":
        return HostGrid(monkeypatch)
    if gpu_is_missing():
        pytest.skip(gpu_is_missing())
    return Gpu()


@pytest.fixture
def grid(monkeypatch):
    """The CUDA engine's grid on the host."""
    return HostGrid(monkeypatch)
