"""Steps of sharded parameters keep nothing alive."""

import gc

import torch
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from radam_fused import FusedRAdam

from .layouts import shard
from .models import backward, give_gradients, new_model, own_part
from .processes import on


def live():
    """The number of Python objects, and of specifications of DTensors."""
    for _ in range(5):  # what a finalizer frees can need another collection
        if gc.collect() == 0:
            break
    types = [type(one) for one in gc.get_objects()]
    return len(types), types.count(DTensorSpec)


def grown(train):
    """How many objects and specifications 200 steps leave."""
    for step in range(20):
        train(step)
    objects, specs = live()
    for step in range(20, 220):
        train(step)
    objects_after, specs_after = live()
    return objects_after - objects, specs_after - specs


@on(2)
def test_steps_leave_no_objects():
    model = shard(new_model())
    optimizer = FusedRAdam(model.named_parameters(), lr=1e-3)

    def train(step):
        optimizer.zero_grad()
        backward(model, step, own_part())
        optimizer.step()

    assert grown(train) == (0, 0)
    assert list(optimizer.backends()) == ["cpu"]


@on(2)
def test_a_leak_is_noticed():
    model = shard(new_model())
    optimizer = FusedRAdam(model.named_parameters(), lr=1e-3)
    give_gradients(model, 0)
    kept = []

    def train(step):
        optimizer.step()
        mesh = model.out.weight.device_mesh
        kept.append(DTensor.from_local(torch.zeros(1), mesh, [Shard(0)]))

    objects, specs = grown(train)
    assert objects >= 200
    assert specs >= 200
