import pytest
import torch
from hypothesis import HealthCheck, settings

from radam_fused.backends.cpu import CpuLaunch, instruction_sets

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
