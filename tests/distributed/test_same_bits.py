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


def hybrid(size, dtype=torch.float32):
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    return shard(new_model().to(dtype), mesh)


def on_two_dimensions(size, dtype=torch.float32):
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
    return shard(parallelize(new_model().to(dtype), mesh["tensor"]), mesh["data"])


LAYOUTS = {
    "plain": lambda size, dtype=torch.float32: new_model().to(dtype),
    "FSDP2": lambda size, dtype=torch.float32: shard(new_model().to(dtype), over_all(size)),
    "HSDP": hybrid,
    "FSDP2 and TP": on_two_dimensions,
    "TP": lambda size, dtype=torch.float32: parallelize(new_model().to(dtype), over_all(size)),
    "TP with sequences": lambda size, dtype=torch.float32: parallelize_sequences(
        new_model().to(dtype), over_all(size)
    ),
}


BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
FORMATS = {
    "float32": (torch.float32, {}),
    "bfloat16 moments": (torch.float32, {"moments": "bfloat16"}),
    "stochastic rounding": (BFLOAT16, {"moments": "bfloat16", "stochastic_rounding": True}),
    "split masters": (BFLOAT16, {"master_weights": "split", "moments": "bfloat16", "seed": 3}),
    "float32 masters": (FLOAT16, {"master_weights": "float32"}),
}


def trained(layout, size, format):
    """The whole parameters and moments after some steps."""
    dtype, own = FORMATS[format]
    model = LAYOUTS[layout](size, dtype)
    optimizer = FusedRAdam(model.named_parameters(), **OPTIONS, **own)
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
    return {format: trained("plain", 1, format) for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
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
def test_a_layout_changes_no_bit(layout, size, format, expected, processes):
    for found in processes.run(size, trained, layout, size, format):
        assert found.keys() == expected[format].keys()
        for name, tensors in found.items():
            for tensor, other in zip(tensors, expected[format][name], strict=True):
                assert_same_bits(tensor, other, name)


@pytest.mark.parametrize("format", FORMATS)
def test_flat_buffers_change_no_bit(format, expected, monkeypatch):
    monkeypatch.setitem(OPTIONS, "flatten", True)
    test_a_layout_changes_no_bit("plain", 1, format, expected, Here)


def test_another_gradient_changes_bits(expected, monkeypatch):
    monkeypatch.setitem(OPTIONS, "lr", torch.tensor(0.05).nextafter(torch.tensor(1.0)).item())
    with pytest.raises(AssertionError):
        test_a_layout_changes_no_bit("plain", 1, "float32", expected, Here)


@pytest.mark.parametrize("format", ["bfloat16 moments", "stochastic rounding", "split masters"])
def test_another_seed_changes_bits(format, expected, monkeypatch):
    dtype, own = FORMATS[format]
    monkeypatch.setitem(FORMATS, format, (dtype, {**own, "seed": 4}))
    with pytest.raises(AssertionError):
        test_a_layout_changes_no_bit("plain", 1, format, expected, Here)


class Here:
    """Runs a function in this process."""

    @staticmethod
    def run(size, function, *arguments):
        return [function(*arguments)]
