"""The comparisons of this folder fail where a step is wrong."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from radam_fused import FusedRAdam
from radam_fused.backends import launches

from .layouts import parallelize_sequences, shard
from .models import Twin, backward, new_model, own_part, train
from .processes import on

LR = 0.05


@on(2)
def test_a_partial_gradient_stepped_as_it_lies():
    redistribute = launches.redistribute
    launches.redistribute = lambda pairs: {key: grad for key, (grad, _) in pairs.items()}
    try:
        model = parallelize_sequences(new_model(), init_device_mesh("cpu", (2,)))
        with pytest.raises(AssertionError, match="norm"):
            train(model, FusedRAdam(model.named_parameters(), lr=LR), lr=LR)
    finally:
        launches.redistribute = redistribute


@on(2)
def test_a_stale_local_tensor():
    model = shard(new_model())
    stale = [torch.nn.Parameter(param._local_tensor) for param in model.parameters()]
    optimizer, twin = FusedRAdam(stale, lr=LR), Twin(model, lr=LR)

    def step(number):
        model.zero_grad()
        backward(model, number, own_part())
        for param, local in zip(model.parameters(), stale, strict=True):
            local.grad = param.grad._local_tensor
        twin.step()
        optimizer.step()
        twin.check()

    step(0)
    model._apply(torch.clone)
    with pytest.raises(AssertionError):
        step(1)


@on(2)
def test_a_gradient_of_one_process_alone():
    model = new_model()
    optimizer, twin = FusedRAdam(model.named_parameters(), lr=LR), Twin(shard(new_model()), lr=LR)
    backward(model, 0, own_part())
    backward(twin.model, 0, own_part())
    twin.step()
    optimizer.step()
    twin.model = model
    with pytest.raises(AssertionError):
        twin.check()
    assert not any(isinstance(param, DTensor) for param in model.parameters())
