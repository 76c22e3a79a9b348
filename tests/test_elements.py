"""The numbers of elements are their places in the full tensor, however it is sharded."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from radam_fused import FusedRAdam
from radam_fused.elements import elements_of

WORLD = 4
SHAPES = [(8, 6), (7, 5), (3, 4), (1, 9), (5,), (2, 3, 4), (9, 1, 3), (6, 4, 5)]
ORDERS = {"contiguous": None, "transposed": (-1, 0), "channels last": (1, -1)}


@pytest.fixture(params=range(WORLD))
def rank(request):
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=WORLD)
    yield request.param
    dist.destroy_process_group()


def in_memory_order(shape, order):
    """The place of each element in a full tensor with the strides of some memory order."""
    swapped = torch.empty(shape)
    if order is not None:
        swapped = swapped.transpose(*order)
    numbers = torch.arange(swapped.numel()).reshape(swapped.shape)
    return numbers if order is None else numbers.transpose(*order)


def part_of(full, mesh, placements):
    """The local tensor of a process, split by hand."""
    dims = list(enumerate(placements))
    # FSDP2 splits what tensor parallelism has split.
    dims.sort(key=lambda pair: isinstance(pair[1], _StridedShard))
    for dim, placement in dims:
        if isinstance(placement, Shard | _StridedShard):
            parts = list(full.chunk(mesh.size(dim), placement.dim))
            place = mesh.get_local_rank(dim)
            empty = full.narrow(placement.dim, 0, 0)
            full = parts[place] if place < len(parts) else empty
    return full


def dtensor(numbers, mesh, placements):
    part = part_of(numbers, mesh, placements)
    local = torch.empty_like(part, dtype=torch.float32)
    like = {"shape": numbers.shape, "stride": numbers.stride()}
    return DTensor.from_local(local, mesh, placements, run_check=False, **like), part


def assert_numbered(numbers, mesh, placements):
    param, expected = dtensor(numbers, mesh, placements)
    found = elements_of(param, (0, 0), "p", [{"params": [param]}])
    assert torch.equal(found.places(param.to_local()), expected)
    assert (found.run > 0) & (found.parameter == 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shards_of_one_dimension_are_numbered(shape, order, rank):
    if order != "contiguous" and len(shape) < 2:
        return
    numbers = in_memory_order(shape, ORDERS[order])
    mesh = init_device_mesh("cpu", (WORLD,))
    for placement in (Replicate(), *map(Shard, range(len(shape)))):
        assert_numbered(numbers, mesh, [placement])


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_shards_of_two_dimensions_are_numbered(shape, rank):
    numbers = in_memory_order(shape, None)
    mesh = init_device_mesh("cpu", (2, 2))
    inner = map(Shard, range(len(shape)))
    for pair in [
        *product([Shard(0), Replicate()], inner),
        *product([Shard(1)], [Shard(0), Replicate(), Shard(1)]),
    ]:
        assert_numbered(numbers, mesh, pair)
    if shape[0] % 4 == 0:
        assert_numbered(numbers, mesh, [_StridedShard(0, split_factor=2), Shard(0)])


def test_other_placements_raise_at_construction(meshes):
    mesh = meshes
    numbers = in_memory_order((6, 4, 8), None)
    param = torch.nn.Parameter(dtensor(numbers, mesh, [Shard(1), Shard(2)])[0])
    text = r"cannot number the elements of parameter 'w' with placements \(Shard\(dim=1\)"
    options = [{"moments": "bfloat16"}, {"stochastic_rounding": True, "moments": "bfloat16"}]
    for option in options:
        with pytest.raises(ValueError, match=text):
            FusedRAdam([("w", param)], **option)
    FusedRAdam([("w", param)])  # draws nothing
    alone = torch.nn.Parameter(dtensor(numbers, mesh, [_StridedShard(0, split_factor=2)] * 2)[0])
    with pytest.raises(ValueError, match="cannot number the elements"):
        FusedRAdam([("w", alone)], moments="bfloat16")


@pytest.mark.parametrize("placements", [[Shard(1), Shard(2)], [Shard(2), Shard(1)]])
def test_every_process_refuses_the_same_placements(placements, rank):
    """Also one whose part has a single element in a dimension, or none at all."""
    mesh = init_device_mesh("cpu", (2, 2))
    for shape in ((2, 3, 4), (2, 1, 4), (2, 2, 1)):
        param, _ = dtensor(in_memory_order(shape, None), mesh, placements)
        if 1 in shape:
            elements_of(param, (0, 0), "p", [{"params": [param]}])
            continue
        with pytest.raises(ValueError, match="cannot number the elements"):
            elements_of(param, (0, 0), "p", [{"params": [param]}])


def test_elements_beyond_32_bits_are_numbered():
    """Runs that are longer than a block, and shorter, at places that 32 bits do not hold."""
    found = elements_of(torch.empty(5), (0, 0), "p", [{"params": [torch.empty(5)]}])
    far = found._replace(offset=2**33 + 7, run=2, stride=2**31)
    expected = [2**33 + 7 + 2**31 * (i // 2) + i % 2 for i in range(5)]
    assert far.places(torch.empty(5)).tolist() == expected


def test_a_parameter_has_the_number_of_its_place_or_of_its_name():
    groups = [{"params": [torch.empty(2)] * 3}, {"params": [torch.empty(1)] * 2}]
    assert elements_of(torch.empty(1), (1, 1), "p", groups).parameter == 4
    groups[1]["param_names"] = ["a", "b"]
    named = elements_of(torch.empty(1), (1, 1), "p", groups).parameter
    assert named == elements_of(torch.empty(1), (1, 1), "other", groups).parameter
    assert named != elements_of(torch.empty(1), (1, 0), "p", groups).parameter
    assert 0 <= named < 2**64
