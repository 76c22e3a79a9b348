"""FusedAdamW: AdamW with the same kernels. Weight decay for matrices only, in two groups."""

import argparse

import torch
from torch import nn

from radam_fused import FusedAdamW

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
options = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 1))
matrices = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
optimizer = FusedAdamW(
    [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
    lr=3e-3,
)  # one launch updates both groups

true_weights = torch.linspace(-1, 1, 32)
for _ in range(options.steps):
    x = torch.randn(64, 32)
    loss = (model(x).squeeze() - x @ true_weights).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"final loss {loss.item():.4f}")
