"""The layout of a model does not change a bit: 1, 2 and 3 processes, FSDP2, TP and plain."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from radam_fused import FusedRAdam

from ..harness.helpers import assert_same_bits
from .layouts import parallelize, parallelize_sequences, shard
from .models import STEPS, give_gradients, new_model, whole

pytestmark = pytest.mark.slow

OPTIONS = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}


def over_all(size):
    return init_device_mesh("cpu", (size,))


def hybrid(size):
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    return shard(new_model(), mesh)


def on_two_dimensions(size):
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
    return shard(parallelize(new_model(), mesh["tensor"]), mesh["data"])


LAYOUTS = {
    "plain": lambda size: new_model(),
    "FSDP2": lambda size: shard(new_model(), over_all(size)),
    "HSDP": hybrid,
    "FSDP2 and TP": on_two_dimensions,
    "TP": lambda size: parallelize(new_model(), over_all(size)),
    "TP with sequences": lambda size: parallelize_sequences(new_model(), over_all(size)),
}


def trained(layout, size):
    """The whole parameters and moments after some steps."""
    model = LAYOUTS[layout](size)
    optimizer = FusedRAdam(model.named_parameters(), **OPTIONS)
    for step in range(STEPS):
        give_gradients(model, step)
        optimizer.step()
    assert list(optimizer.backends()) == ["cpu"]
    return {
        name: [whole(tensor) for tensor in (param, *optimizer.state[param].values())]
        for name, param in model.named_parameters()
    }


@pytest.fixture(scope="module")
def expected():
    return trained("plain", 1)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("plain", 2),
        ("FSDP2", 1),
        ("FSDP2", 2),
        ("FSDP2", 3),
        ("HSDP", 4),
        ("FSDP2 and TP", 4),
        ("TP", 1),
        ("TP", 2),
        ("TP", 3),
        ("TP with sequences", 2),
    ],
)
def test_a_layout_changes_no_bit(layout, size, expected, processes):
    for found in processes.run(size, trained, layout, size):
        assert found.keys() == expected.keys()
        for name, tensors in found.items():
            for tensor, other in zip(tensors, expected[name], strict=True):
                assert_same_bits(tensor, other, name)


def test_another_gradient_changes_bits(expected, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "plain", lambda size: new_model())
    monkeypatch.setitem(OPTIONS, "lr", torch.tensor(0.05).nextafter(torch.tensor(1.0)).item())
    with pytest.raises(AssertionError):
        test_a_layout_changes_no_bit("plain", 1, expected, Here)


class Here:
    """Runs a function in this process."""

    @staticmethod
    def run(size, function, *arguments):
        return [function(*arguments)]
