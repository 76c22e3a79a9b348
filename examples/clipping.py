"""Clipping inside the step: no clip_grad_norm_, no wait, and bad steps are left out."""

import argparse

import torch
from torch import nn

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1)).to(device)
optimizer = FusedRAdam(
    model.parameters(), lr=1e-2, max_grad_norm=1.0, skip_above=1e3, track_update_norm=True
)

true_weights = torch.linspace(-1, 1, 32, device=device)
for step in range(options.steps):
    x = torch.randn(64, 32, device=device)
    if step % 50 == 3:
        x *= 1e4  # a broken batch: its gradients are too large
    loss = (model(x).squeeze() - x @ true_weights).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:  # only here the host waits for the device
        print(f"step {step}: norm {optimizer.grad_norm:.3f}, update {optimizer.update_norm:.4f}")
print(f"final loss {loss.item():.4f}, {optimizer.skipped_steps} steps skipped")
