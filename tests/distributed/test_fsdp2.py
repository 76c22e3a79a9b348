"""FSDP2 (fully_shard): equal to one process, stepped by the fused backend."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard

from radam_fused import FusedRAdam

from .layouts import shard
from .models import Model, backward, follow, new_model, own_part, train
from .processes import on

LR = 0.05


def optimizer_of(model, **options):
    return FusedRAdam(model.named_parameters(), lr=LR, **options)


def columns(param):
    """FSDP2 shards later dimensions only evenly."""
    return Shard(1) if param.ndim == 2 and param.shape[1] % 2 == 0 else Shard(0)


OPTIONS = {
    "default": {},
    "kept": {"reshard_after_forward": False},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "columns": {"shard_placement_fn": columns},
}


@pytest.mark.parametrize("name", OPTIONS)
@on(2)
def test_options_of_fully_shard(name):
    model = shard(new_model(), **OPTIONS[name])
    assert all(isinstance(param, DTensor) for param in model.parameters())
    train(model, optimizer_of(model), own_part(), lr=LR)


@on(3)
def test_uneven_shards():
    model = shard(new_model())
    assert len(model.embed.weight._local_tensor) == (3, 3, 2)[dist.get_rank()]
    train(model, optimizer_of(model), own_part(), lr=LR)


@on(4)
def test_empty_shards():
    model = shard(new_model())
    assert (model.out.bias._local_tensor.numel() == 0) == (dist.get_rank() == 3)
    train(model, optimizer_of(model), own_part(), lr=LR)


@on(4)
def test_hybrid_sharding():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = shard(new_model(), mesh)
    train(model, optimizer_of(model), own_part(), lr=LR)


@on(2)
def test_parameters_in_bfloat16_for_the_forward_pass():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(new_model(), mp_policy=policy)
    follow(model, optimizer_of(model), lambda step: backward(model, step, own_part()), lr=LR)


@pytest.mark.parametrize("optimizer_first", [False, True])
@on(2)
def test_construction_on_meta(optimizer_first):
    with torch.device("meta"):
        model = shard(Model())
    optimizer = optimizer_of(model) if optimizer_first else None
    model.to_empty(device="cpu")
    for param, value in zip(model.parameters(), new_model().parameters(), strict=True):
        local = param._local_tensor
        local.copy_(value.detach().chunk(2)[dist.get_rank()])
    train(model, optimizer or optimizer_of(model), own_part(), lr=LR)


@on(2)
def test_replaced_local_tensors_are_stepped():
    model = shard(new_model())

    def give(step):
        if step == 4:
            before = [param._local_tensor for param in model.parameters()]
            model._apply(torch.clone)
            for param, local in zip(model.parameters(), before, strict=True):
                assert param._local_tensor.data_ptr() != local.data_ptr()
        backward(model, step, own_part())

    follow(model, optimizer_of(model), give, lr=LR)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu"},
        {"fused": True},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
@on(2)
def test_options_of_the_optimizer(options):
    model = shard(new_model())
    own = {key: value for key, value in options.items() if key != "backend"}
    train(model, optimizer_of(model, **options), own_part(), lr=LR, **own)


@on(2)
def test_accumulated_gradients():
    """Gradients are reduced in the last of three backward passes."""
    model = shard(new_model())

    def give(step):
        for again in range(3):
            model.set_requires_gradient_sync(again == 2)
            backward(model, 3 * step + again, own_part())

    follow(model, optimizer_of(model), give, lr=LR)


@on(2)
def test_frozen_parameters():
    model = new_model()
    for param in model.blocks[0].parameters():
        param.requires_grad_(False)
    shard(model)
    optimizer = optimizer_of(model)
    follow(model, optimizer, lambda step: backward(model, step, own_part()), lr=LR)
    assert len(optimizer.state) == 10
