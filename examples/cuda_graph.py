"""A whole training step in a CUDA graph: capturable=True counts the steps on the device."""

import argparse

import torch
from torch import nn

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()
if not torch.cuda.is_available():
    raise SystemExit("a CUDA graph needs a GPU, and torch sees none")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1)).cuda()
lr = torch.tensor(1e-2, device="cuda")  # a tensor, so that replays see its changes
optimizer = FusedRAdam(model.parameters(), lr=lr, capturable=True)
x, loss = torch.randn(64, 32, device="cuda"), torch.zeros((), device="cuda")
true_weights = torch.linspace(-1, 1, 32, device="cuda")


def train() -> None:
    """One step, on the batch that lies in x."""
    optimizer.zero_grad()
    result = (model(x).squeeze() - x @ true_weights).square().mean()
    result.backward()
    optimizer.step()
    loss.copy_(result.detach())


stream = torch.cuda.Stream()  # one step before the capture, on a side stream
stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):
    train()
torch.cuda.current_stream().wait_stream(stream)

graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    train()

for step in range(options.steps):
    x.normal_()
    lr.fill_(1e-2 * (1 - step / options.steps))
    graph.replay()
print(f"final loss {loss.item():.4f}")
