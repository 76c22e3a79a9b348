"""Lightning: configure_optimizers returns FusedRAdam; Lightning clips the gradients."""

import argparse
import tempfile

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from radam_fused import FusedRAdam


class Regression(lightning.LightningModule):
    """A small regression."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))

    def training_step(self, batch, _):
        x, y = batch
        loss = (self.net(x).squeeze() - y).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return FusedRAdam(self.parameters(), lr=1e-2)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    lightning.seed_everything(0)
    x = torch.randn(options.steps * 16, 32)
    loader = DataLoader(TensorDataset(x, x @ torch.linspace(-1, 1, 32)), batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1,
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
        )
        trainer.fit(Regression(), loader)
        print(f"final loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    main()
