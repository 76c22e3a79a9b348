"""A bfloat16 model with exact float32 weights: clipping, a checkpoint to resume from, an export."""

import argparse
from pathlib import Path

import torch
from torch import nn

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--weights", type=Path, default=Path("weights.pt"))
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))
model = model.to(device, torch.bfloat16)
optimizer = FusedRAdam(
    model.named_parameters(), lr=1e-2, master_weights="split", moments="bfloat16", max_grad_norm=1.0
)
start = 0

if options.checkpoint.exists():
    saved = torch.load(options.checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])  # with the other 16 bits of each weight
    start = saved["step"]

true_weights = torch.linspace(-1, 1, 32, device=device)
for step in range(start, options.steps):
    x = torch.randn(64, 32, device=device)
    predicted = model(x.bfloat16()).float().squeeze()
    loss = (predicted - x @ true_weights).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}, norm {optimizer.grad_norm:.3f}")

state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
torch.save(state | {"step": options.steps}, options.checkpoint)
names = [name for name, _ in model.named_parameters()]
torch.save(dict(zip(names, optimizer.master_params(), strict=True)), options.weights)
print(f"final loss {loss.item():.4f}, saved {options.checkpoint} and {options.weights}")
