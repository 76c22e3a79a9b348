"""timm: register FusedRAdam by name, then choose it as any other optimizer of timm."""

import argparse

import torch
from timm.optim import OptimInfo, create_optimizer_v2
from timm.optim._optim_factory import default_registry  # timm exports it nowhere else
from torch import nn

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

default_registry.register(
    OptimInfo("fusedradam", FusedRAdam, description="RAdam in one fused pass", has_betas=True)
)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 1))
optimizer = create_optimizer_v2(model, opt="fusedradam", lr=1e-2, weight_decay=0.01)
true_weights = torch.linspace(-1, 1, 32)
for _ in range(options.steps):
    x = torch.randn(64, 32)
    loss = (model(x).squeeze() - x @ true_weights).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{type(optimizer).__name__} in {len(optimizer.param_groups)} groups, loss {loss.item():.4f}")
