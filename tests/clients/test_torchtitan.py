"""torchtitan: its container of optimizers, which knows three names."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

if find_spec("torchtitan") is None:
    pytest.skip("torchtitan is not installed", allow_module_level=True)

from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from radam_fused import FusedRAdam

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Container(OptimizersContainer):
    """The recipe: one more name."""

    @staticmethod
    def _resolve_optimizer_factory(name):
        more = {"FusedRAdam": FusedRAdam, "RAdam": torch.optim.RAdam}
        return more.get(name) or OptimizersContainer._resolve_optimizer_factory(name)


def build(cls, implementation="fused"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))
    groups = [
        ParamGroupConfig(pattern=pattern, optimizer_name=cls.__name__, optimizer_kwargs=kwargs)
        for pattern, kwargs in (
            (r"\.bias$", {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.0}),
            (r".*", {"lr": 5e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}),
        )
    ]
    config = OptimizersContainer.Config(param_groups=groups, implementation=implementation)
    return model, Container(config, model_parts=[model])


def train(model, container, steps):
    for step in steps:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        container.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        container.step()
    return model


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_it_trains_as_with_torch(implementation):
    models = {}
    for name, cls in OPTIMIZERS.items():
        model, container = build(cls, implementation)
        models[name] = train(model, container, range(8))
        if name == "ours":
            [optimizer] = container.optimizers
            assert_fused(optimizer)
            assert optimizer.backends()["cpu"] == ["0.bias", "2.bias", "0.weight", "2.weight"]
    assert_close(models["ours"], models["torch"])


def test_it_resumes_bit_for_bit():
    model, container = build(FusedRAdam)
    train(model, container, range(4))
    saved = {
        key: torch.clone(v) if torch.is_tensor(v) else v
        for key, v in container.state_dict().items()
    }
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, container, range(4, 8))
    other, resumed = build(FusedRAdam)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(other, resumed, range(4, 8))
    assert_same(other, model)


def test_the_step_clips_instead():
    from torchtitan.distributed.utils import clip_grad_norm_

    model, container = build(FusedRAdam)
    for optimizer in container.optimizers:
        optimizer.max_grad_norm = 0.5
    other, theirs = build(torch.optim.RAdam)
    for step in range(8):
        train(model, container, [step])
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        theirs.zero_grad()
        (other(x) - x.sum(1, keepdim=True)).square().mean().backward()
        norm = clip_grad_norm_(other.parameters(), 0.5)
        theirs.step()
        [optimizer] = container.optimizers
        torch.testing.assert_close(optimizer.grad_norm.float(), norm)
    assert_close(model, other)


def test_its_options_of_groups_do_not_clip():
    """torchtitan gives all options to groups; that of clipping is an error there."""
    kwargs = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.0, "max_grad_norm": 1.0}
    group = ParamGroupConfig(pattern=r".*", optimizer_name="FusedRAdam", optimizer_kwargs=kwargs)
    config = OptimizersContainer.Config(param_groups=[group], implementation="fused")
    with pytest.raises(ValueError, match=r"max_grad_norm=1\.0, expected it as an argument"):
        Container(config, model_parts=[nn.Linear(3, 2)])
