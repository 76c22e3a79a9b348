"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/ddp.py

Every rank steps its own copy of the parameters, with equal bits. Rank 0 saves a checkpoint, from
which a run with any number of ranks can go on. The gradients are averaged by NCCL on GPUs, by Gloo
on CPUs.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam


def main() -> None:
    """Train on one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="steps of this run")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1)).to(device)
    model = DistributedDataParallel(model, device_ids=[device] if on_gpu else None)
    optimizer = FusedRAdam(model.parameters(), lr=1e-2)
    start = 0
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]

    true_weights = torch.linspace(-1, 1, 32, device=device)
    for step in range(start, start + options.steps):
        generator = torch.Generator().manual_seed(step * dist.get_world_size() + rank)
        x = torch.randn(64, 32, generator=generator).to(device)
        loss = (model(x).squeeze() - x @ true_weights).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    dist.barrier()  # every rank has read the checkpoint before it is replaced
    if rank == 0:
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": start + options.steps}, options.checkpoint)
        print(f"final loss {loss.item():.4f} at step {start + options.steps}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
