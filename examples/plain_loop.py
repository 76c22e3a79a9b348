"""A plain training loop with a warm-up-free schedule, and a checkpoint to resume from."""

import argparse
from pathlib import Path

import torch
from torch import nn

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1)).to(device)
optimizer = FusedRAdam(model.parameters(), lr=1e-2)  # was: torch.optim.RAdam(...)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
start = 0

if options.checkpoint.exists():
    saved = torch.load(options.checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    start = saved["step"]

true_weights = torch.linspace(-1, 1, 32, device=device)
for step in range(start, options.steps):
    x = torch.randn(64, 32, device=device)
    loss = (model(x).squeeze() - x @ true_weights).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 50 == 0:
        [group] = optimizer.rectification()
        print(f"step {step}: loss {loss.item():.4f}, r_t {group.r_t:.3f}")

state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
state |= {"scheduler": scheduler.state_dict(), "step": options.steps}
torch.save(state, options.checkpoint)
print(f"final loss {loss.item():.4f}, saved {options.checkpoint}")
