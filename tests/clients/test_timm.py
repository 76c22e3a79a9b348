"""timm: an optimizer that is registered by name, and layer decay."""

import copy
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam

from ..harness.without_torchvision import Empty
from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed"),
]


@pytest.fixture(scope="module")
def factory():
    """timm's factory with both optimizers registered."""
    finder = Empty()
    sys.meta_path.insert(0, finder)
    try:
        from timm.optim import OptimInfo, create_optimizer_v2
        from timm.optim._optim_factory import default_registry
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    for name, cls in OPTIMIZERS.items():
        default_registry.register(
            OptimInfo(f"radam{name}", cls, description="RAdam", has_betas=True)
        )
    return create_optimizer_v2


class Blocks(nn.Module):
    """A model that names the layers of its parameters, as those of timm do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)

    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^head", (99999,))]}


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.5}], ids=str)
def test_it_trains_as_with_torch(options, factory):
    models = {}
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    for name in OPTIMIZERS:
        model = Blocks()
        optimizer = factory(
            model, opt=f"radam{name}", lr=1e-2, weight_decay=0.05, betas=[0.9, 0.99], **options
        )
        for _ in range(8):
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        models[name] = model
        if name == "ours":
            assert type(optimizer) is FusedRAdam
            assert_fused(optimizer)
            assert len(optimizer.param_groups) > 1
    assert_close(models["ours"], models["torch"])


def test_it_resumes_bit_for_bit(factory):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))

    def run(steps, saved=None):
        model = Blocks()
        optimizer = factory(model, opt="radamours", lr=1e-2, weight_decay=0.05, layer_decay=0.5)
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        return model, optimizer

    whole, _ = run(8)
    half, optimizer = run(4)
    resumed, _ = run(4, copy.deepcopy([half.state_dict(), optimizer.state_dict()]))
    assert_same(resumed, whole)
