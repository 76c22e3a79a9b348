"""Tensor parallel, alone and with FSDP2: equal to one process, stepped by the fused backend."""

from collections import Counter

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from radam_fused import FusedRAdam

from .layouts import parallelize, parallelize_sequences, shard
from .models import backward, follow, give_gradients, new_model, part_of, train
from .processes import on

LR = 0.05


def optimizer_of(model):
    return FusedRAdam(model.named_parameters(), lr=LR)


@on(2)
def test_tensor_parallel():
    model = parallelize(new_model(), init_device_mesh("cpu", (2,)))
    assert Counter(isinstance(param, DTensor) for param in model.parameters()) == {
        True: 8,
        False: 8,
    }
    optimizer = optimizer_of(model)
    train(model, optimizer, lr=LR)
    assert len(list(optimizer._plan.launches)) == 1


@on(2)
def test_sequence_parallel():
    """Gradients of replicated parameters are partial sums there."""
    model = parallelize_sequences(new_model(), init_device_mesh("cpu", (2,)))
    backward(model, 0)
    misplaced = [name for name, p in model.named_parameters() if p.placements != p.grad.placements]
    assert len(misplaced) == 4
    train(model, optimizer_of(model), lr=LR)


@on(3)
def test_replicated_gradients_of_sharded_parameters():
    model = parallelize(new_model(), init_device_mesh("cpu", (3,)))

    def give(step):
        give_gradients(model, step)
        for param in model.parameters():
            if isinstance(param, DTensor):
                param.grad = param.grad.redistribute(placements=[Replicate()])

    follow(model, optimizer_of(model), give, lr=LR)


@on(3)
def test_uneven_shards():
    """A block is divided by 3; the 8 rows of a linear layer are not."""
    model, mesh = new_model(), init_device_mesh("cpu", (3,))
    parallelize_module(model, mesh, {"embed": ColwiseParallel(output_layouts=Replicate())})
    assert len(model.embed.weight._local_tensor) == (3, 3, 2)[dist.get_rank()]
    train(model, optimizer_of(model), lr=LR)


@on(4)
def test_tensor_parallel_with_fsdp2():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize(new_model(), mesh["tensor"])
    shard(model, mesh["data"])
    placements = {type(it) for param in model.parameters() for it in param.placements}
    assert placements == {Shard, _StridedShard, Replicate}
    part = part_of(mesh["data"].get_local_rank(), 2)
    train(model, optimizer_of(model), part, lr=LR)
