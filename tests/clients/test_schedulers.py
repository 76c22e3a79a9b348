"""The schedulers of torch, with a learning rate that is a number or a tensor, and chained."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as of_torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEDULERS = {
    "LambdaLR": lambda o: of_torch.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: of_torch.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: of_torch.StepLR(o, 3),
    "MultiStepLR": lambda o: of_torch.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: of_torch.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: of_torch.LinearLR(o, total_iters=8),
    "ExponentialLR": lambda o: of_torch.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: of_torch.PolynomialLR(o, 12, power=2.0),
    "CosineAnnealingLR": lambda o: of_torch.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: of_torch.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: of_torch.CyclicLR(o, 1e-3, 1e-2, 3),
    "OneCycleLR": lambda o: of_torch.OneCycleLR(o, 1e-2, total_steps=12),
    "ReduceLROnPlateau": lambda o: of_torch.ReduceLROnPlateau(o, patience=1, threshold=10.0),
    "SequentialLR": lambda o: of_torch.SequentialLR(
        o, [of_torch.LinearLR(o, total_iters=3), of_torch.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: of_torch.ChainedScheduler(
        [of_torch.ConstantLR(o, total_iters=4), of_torch.ExponentialLR(o, 0.9)], o
    ),
    "SWALR": lambda o: SWALR(o, 1e-3, anneal_epochs=4),
}


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def data():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def backward(model):
    x = data()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss.item()


def test_every_scheduler_is_here():
    assert set(of_torch.__all__) <= {*SCHEDULERS, "LRScheduler"}


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_trains_as_with_torch(name, kind):
    models = {}
    for which, cls in OPTIMIZERS.items():
        model = new_model()
        optimizer = cls(model.parameters(), lr=kind(5e-3))
        scheduler, rates = SCHEDULERS[name](optimizer), set()
        for _ in range(10):
            optimizer.zero_grad()
            loss = backward(model)
            optimizer.step()
            scheduler.step(loss) if name == "ReduceLROnPlateau" else scheduler.step()
            rates.add(float(optimizer.param_groups[0]["lr"]))
        assert len(rates) > 1
        models[which] = model
        if which == "ours":
            assert_fused(optimizer)
    assert_close(models["ours"], models["torch"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_resumes_bit_for_bit(name):
    if name in ("LambdaLR", "MultiplicativeLR"):
        pytest.skip("torch saves no functions")
    cls = OPTIMIZERS["ours"]

    def run(count, saved=None):
        model = new_model()
        optimizer = cls(model.parameters(), lr=5e-3)
        scheduler = SCHEDULERS[name](optimizer)
        if saved is not None:
            for one, state in zip((model, optimizer, scheduler), saved, strict=True):
                one.load_state_dict(state)
        for _ in range(count):
            optimizer.zero_grad()
            loss = backward(model)
            optimizer.step()
            scheduler.step(loss) if name == "ReduceLROnPlateau" else scheduler.step()
        states = [copy.deepcopy(one.state_dict()) for one in (model, optimizer, scheduler)]
        return model, states

    whole, _ = run(10)
    _, saved = run(5)
    resumed, _ = run(5, saved)
    assert_same(resumed, whole)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "exponential"])
def test_averaged_weights(average):
    averages = {}
    for which, cls in OPTIMIZERS.items():
        model = new_model()
        optimizer = cls(model.parameters(), lr=5e-3)
        averaged = AveragedModel(model, multi_avg_fn=average)
        scheduler = SWALR(optimizer, 1e-3, anneal_epochs=4)
        for _ in range(10):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            averaged.update_parameters(model)
            scheduler.step()
        update_bn([data()], averaged)
        averages[which] = averaged.module
    assert_close(averages["ours"], averages["torch"])
