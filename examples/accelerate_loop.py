"""Accelerate: gradient accumulation, mixed precision where there is a GPU, save and load."""

import argparse
import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

torch.manual_seed(0)
x = torch.randn(options.steps * 16, 32)
loader = DataLoader(TensorDataset(x, x @ torch.linspace(-1, 1, 32)), batch_size=16)
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))
precision = "bf16" if torch.cuda.is_available() else "no"
accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision=precision)
model, optimizer, loader = accelerator.prepare(
    model, FusedRAdam(model.parameters(), lr=1e-2), loader
)

for inputs, targets in loader:
    with accelerator.accumulate(model):
        loss = (model(inputs).squeeze() - targets).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)
    accelerator.load_state(folder)
print(f"final loss {loss.item():.4f}")
