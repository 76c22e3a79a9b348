"""lightning: Trainer with mixed precision and clipping, and Fabric."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning")

from radam_fused import FusedRAdam  # noqa: E402

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Regression(lightning.LightningModule):
    def __init__(self, cls, **options):
        super().__init__()
        self.options = {"lr": 1e-2, **options}
        torch.manual_seed(0)
        self.cls = cls
        self.net = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))

    def training_step(self, batch, _):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self):
        optimizer = self.cls(self.parameters(), **self.options)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def trainer(folder, epochs=2, **options):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_it_trains_as_with_torch(precision, tmp_path):
    models = {}
    for name, cls in OPTIMIZERS.items():
        models[name] = Regression(cls)
        run = trainer(tmp_path, precision=precision, gradient_clip_val=0.5)
        run.fit(models[name], data())
        if name == "ours":
            [optimizer] = run.optimizers
            assert_fused(getattr(optimizer, "optimizer", optimizer))
    assert_close(models["ours"], models["torch"])


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_step_clips_instead(precision, tmp_path):
    ours, theirs = Regression(FusedRAdam, max_grad_norm=0.5), Regression(torch.optim.RAdam)
    run = trainer(tmp_path, precision=precision)
    run.fit(ours, data())
    [optimizer] = run.optimizers
    assert getattr(optimizer, "optimizer", optimizer).grad_norm > 0.5
    trainer(tmp_path, precision=precision, gradient_clip_val=0.5).fit(theirs, data())
    assert_close(ours, theirs)


def test_it_resumes_bit_for_bit(tmp_path):
    first, whole, resumed = (Regression(FusedRAdam) for _ in range(3))
    trainer(tmp_path, 4).fit(whole, data())
    half = trainer(tmp_path, 2)
    half.fit(first, data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, 4).fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert_same(resumed, whole)


def test_fabric():
    models = {}
    for name, cls in OPTIMIZERS.items():
        torch.manual_seed(0)
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))
        wrapped, optimizer = fabric.setup(model, cls(model.parameters(), lr=1e-2))
        for x, y in fabric.setup_dataloaders(data()):
            optimizer.zero_grad()
            fabric.backward((wrapped(x) - y).square().mean())
            fabric.clip_gradients(wrapped, optimizer, max_norm=0.5)
            optimizer.step()
        models[name] = model
        if name == "ours":
            assert_fused(optimizer.optimizer)
    assert_close(models["ours"], models["torch"])
