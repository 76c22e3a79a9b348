"""FSDP2 with a checkpoint: torchrun --nproc-per-node 2 examples/fsdp2.py

Every rank keeps and steps a shard of each parameter. A run with another number of ranks can go on
from the checkpoint. NCCL connects GPUs, Gloo connects CPUs.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from radam_fused import FusedRAdam


def main() -> None:
    """Train on one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="steps of this run")
    parser.add_argument("--checkpoint", type=Path, default=Path("sharded_checkpoint"))
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (int(os.environ["WORLD_SIZE"]),))

    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(32, 1)).to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = FusedRAdam(model.named_parameters(), lr=1e-2)
    print(f"rank {mesh.get_rank()} steps by {', '.join(optimizer.backends())}")

    start = 0
    if options.checkpoint.exists():
        model_state, optimizer_state = get_state_dict(model, optimizer)
        saved = {"model": model_state, "optimizer": optimizer_state, "step": 0}
        dcp.load(saved, checkpoint_id=options.checkpoint)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
        )
        start = saved["step"]

    true_weights = torch.linspace(-1, 1, 32, device=device)
    for step in range(start, start + options.steps):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(96, 32, generator=generator)
        x = batch.chunk(mesh.size())[mesh.get_rank()].to(device)  # the part of this rank
        loss = (model(x).squeeze() - x @ true_weights).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    end = start + options.steps
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": end}
    dcp.save(state, checkpoint_id=options.checkpoint)
    if mesh.get_rank() == 0:
        print(f"final loss {loss.item():.4f} at step {end}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
