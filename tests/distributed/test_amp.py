"""torch.amp.GradScaler with sharded parameters: all processes skip the step, or none."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam

from .layouts import shard
from .models import STEPS, Twin, backward, new_model, own_part, placed_gradient, whole
from .processes import on

LR = 0.05
OVERFLOWS = (2, 6)  # steps


def overflow(model, rank):
    """An infinite gradient on one process."""
    if dist.get_rank() == rank:
        grad = model.blocks[0].up.weight.grad
        getattr(grad, "_local_tensor", grad).view(-1)[0] = float("inf")


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("method", ["FSDP2", "DDP"])
@on(2)
def test_an_overflow_on_one_process_skips_the_step_on_all(method, fused):
    model = new_model()
    parallel = shard(model) if method == "FSDP2" else DistributedDataParallel(model)
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    twin = Twin(model, lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        scale = scaler.scale(torch.ones(())).item()
        backward(parallel, step, own_part(), scale)
        overflows = step in OVERFLOWS
        if overflows:
            # DDP has reduced the gradients: what one process adds would part the copies.
            overflow(model, 1 if method == "FSDP2" else dist.get_rank())
        else:
            for name, param in model.named_parameters():
                twin.params[name].grad = placed_gradient(param) / scale
            twin.optimizer.step()
        scaler.step(optimizer)
        scaler.update()
        twin.check(optimizer)
        assert (scaler.get_scale() < scale) == overflows
    assert list(optimizer.backends()) == ["cpu"]
    for param in model.parameters():
        assert torch.isfinite(whole(param)).all()
        assert optimizer.state[param]["step"].item() == STEPS - len(OVERFLOWS)
