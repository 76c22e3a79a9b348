"""accelerate: accumulation, scaled gradients, checkpoints."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip("accelerate")

from radam_fused import FusedRAdam  # noqa: E402

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _fresh():
    yield
    _reset()


def prepare(cls, given=None, **options):
    torch.manual_seed(0)
    x = torch.randn(16 * 8, 6)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))
    accelerator = accelerate.Accelerator(cpu=True, **options)
    optimizer = cls(model.parameters(), lr=1e-2, **(given or {}))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
    return accelerator, *accelerator.prepare(model, optimizer, loader, scheduler)


def train(accelerator, model, optimizer, loader, scheduler, batches=slice(None), clips="always"):
    for x, y in list(loader)[batches]:
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            if clips == "always" or (clips == "at steps" and accelerator.sync_gradients):
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}], ids=str
)
def test_it_trains_as_with_torch(options):
    models = {}
    for name, cls in OPTIMIZERS.items():
        prepared = prepare(cls, **options)
        models[name] = train(*prepared)
        if name == "ours":
            assert_fused(prepared[2].optimizer)
        _reset()
    assert_close(models["ours"], models["torch"])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_step_clips_instead(accumulation):
    options = {"gradient_accumulation_steps": accumulation}
    ours = prepare(FusedRAdam, {"max_grad_norm": 1.0}, **options)
    train(*ours, clips="never")
    assert ours[2].optimizer.grad_norm > 0
    _reset()
    assert_close(ours[1], train(*prepare(torch.optim.RAdam, **options), clips="at steps"))


def _reset():
    """Forget the state of an accelerator, which is shared by the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def test_it_resumes_bit_for_bit(tmp_path):
    whole = prepare(FusedRAdam)
    train(*whole, batches=slice(8))
    whole[0].save_state(str(tmp_path))
    train(*whole, batches=slice(8, 16))
    _reset()
    resumed = prepare(FusedRAdam)
    resumed[0].load_state(str(tmp_path))
    train(*resumed, batches=slice(8, 16))
    assert_same(resumed[1], whole[1])


def test_a_skipped_step_is_reported():
    """As with mixed_precision="fp16", which accelerate allows on GPUs only."""
    _, model, prepared, loader, _ = prepare(FusedRAdam)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(prepared.optimizer, scaler=scaler)
    for number, (x, y) in enumerate(list(loader)[:4]):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean() * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == (number == 1)
        assert all(map(torch.equal, before, model.parameters())) == (number == 1)
