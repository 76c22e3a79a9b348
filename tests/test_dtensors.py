"""DTensors are stepped through their local tensors, with the bits of plain tensors."""

import contextlib
import dataclasses

import pytest
import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.two_tensor import TwoTensor

from radam_fused import FusedRAdam, radam_step_

from .harness.helpers import same_bits, sharded

SHAPES = [(10, 6), (7,), (3, 3), (1,), (0, 4)]  # of local tensors


def pair(mesh, dtype=torch.float32, **options):
    """An optimizer of DTensors, and one of plain tensors with the same values."""
    values = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    params = [torch.nn.Parameter(sharded(value.clone(), mesh)) for value in values]
    plain = [torch.nn.Parameter(value.clone()) for value in values]
    return FusedRAdam(params, lr=0.1, **options), FusedRAdam(plain, lr=0.1, **options)


def params_of(optimizer):
    return optimizer.param_groups[0]["params"]


def step(optimizer, plain, mesh):
    for param, twin in zip(params_of(optimizer), params_of(plain), strict=True):
        twin.grad = torch.randn_like(twin)
        param.grad = sharded(twin.grad.clone(), mesh)
    optimizer.step()
    plain.step()


def check_same(optimizer, plain):
    for param, twin in zip(params_of(optimizer), params_of(plain), strict=True):
        assert same_bits(param._local_tensor, twin.detach())
        for key, tensor in plain.state[twin].items():
            ours = optimizer.state[param][key]
            assert type(ours) is (torch.Tensor if key == "step" else DTensor)
            assert same_bits(ours if key == "step" else ours._local_tensor, tensor)


def test_dtensors_have_the_bits_of_plain_tensors(backend, mesh):
    optimizer, plain = pair(mesh, backend=backend)
    for _ in range(8):
        versions = [param._version for param in params_of(optimizer)]
        step(optimizer, plain, mesh)
        assert [param._version for param in params_of(optimizer)] == [v + 1 for v in versions]
    check_same(optimizer, plain)


@pytest.mark.parametrize(
    "options",
    [
        {"fused": True},
        {"amsgrad": True},
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "moments": "param"},
        {"dtype": torch.complex64},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options, backend, mesh):
    optimizer, plain = pair(mesh, backend=backend, **options)
    for _ in range(8):
        step(optimizer, plain, mesh)
    check_same(optimizer, plain)
    assert list(optimizer.backends()) == [backend]


def test_steps_that_the_device_counts(host_backend, mesh):
    optimizer, plain = pair(mesh, backend=host_backend.name, capturable=True)
    for _ in range(8):
        step(optimizer, plain, mesh)
    check_same(optimizer, plain)
    assert all(launch.kind.counts_on_device for launch in optimizer._plan.launches)


def test_the_function(mesh):
    values = [torch.randn(3, 4) for _ in range(4)]
    for step in range(8):
        plain = [value.clone() for value in values]
        placed = [sharded(value.clone(), mesh) for value in values]
        counts = [torch.tensor(float(step)) for _ in range(2)]
        for tensors, count in zip((plain, placed), counts, strict=True):
            param, grad, exp_avg, exp_avg_sq = tensors
            exp_avg_sq.abs_()
            radam_step_([param], [grad], [exp_avg], [exp_avg_sq], [count], lr=0.1)
            assert count.item() == step + 1
        assert not same_bits(plain[0], values[0])
        for tensor, other in zip(placed, plain, strict=True):
            assert same_bits(tensor._local_tensor, other)


def test_a_local_tensor_that_is_still_computed_is_waited_for(mesh):
    optimizer, plain = pair(mesh)
    for _ in range(3):
        for param, twin in zip(params_of(optimizer), params_of(plain), strict=True):
            twin.grad = torch.randn_like(twin)
            param.grad = sharded(torch.empty_like(twin), mesh)
            param.grad._local_tensor = AsyncCollectiveTensor(twin.grad.clone())
        optimizer.step()
        plain.step()
        assert all(param.grad._local_tensor.completed for param in params_of(optimizer))
    check_same(optimizer, plain)


def test_dtensors_and_plain_tensors_share_a_launch(mesh):
    param = torch.nn.Parameter(sharded(torch.ones(4), mesh))
    plain = torch.nn.Parameter(torch.ones(4))
    param.grad, plain.grad = sharded(torch.ones(4), mesh), torch.ones(4)
    optimizer = FusedRAdam([param, plain])
    optimizer.step()
    [launch] = optimizer._plan.launches
    assert type(launch).__name__ == "CpuLaunch"
    assert same_bits(param._local_tensor, plain.detach())


def test_a_replaced_local_tensor_is_stepped(mesh):
    optimizer, plain = pair(mesh)
    step(optimizer, plain, mesh)
    stale = [param._local_tensor for param in params_of(optimizer)]
    kept = [tensor.clone() for tensor in stale]
    for param, tensor in zip(params_of(optimizer), stale, strict=True):
        param._local_tensor = tensor.clone()
    step(optimizer, plain, mesh)
    check_same(optimizer, plain)
    assert all(map(same_bits, stale, kept))


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_gradient_that_is_placed_otherwise_is_redistributed(backend, mesh):
    param = torch.nn.Parameter(sharded(torch.ones(4, 3), mesh))
    plain = torch.nn.Parameter(torch.ones(4, 3))
    optimizer, other = FusedRAdam([param], lr=0.1, backend=backend), FusedRAdam([plain], lr=0.1)
    for _ in range(7):
        whole = torch.randn(8, 3)
        param.grad, plain.grad = sharded(whole, mesh, Replicate()), whole[:4].clone()
        optimizer.step()
        other.step()
    assert same_bits(param._local_tensor, plain.detach())


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_another_order_of_the_shards_is_another_placement(backend, meshes):
    """Both dimensions of the mesh shard dimension 0, the other one first."""
    square = meshes
    usual = DTensor.from_local(torch.ones(2, 3), square, [Shard(0), Shard(0)], run_check=False)
    [entry] = usual._spec.shard_order
    reversed_order = (entry._replace(mesh_dims=entry.mesh_dims[::-1]),)
    spec = dataclasses.replace(usual._spec, shard_order=reversed_order)
    param = DTensor(torch.ones(2, 3), spec, requires_grad=True)
    param.grad = DTensor(torch.ones(2, 3), spec, requires_grad=False)
    optimizer = FusedRAdam([param], lr=0.1, backend=backend)
    optimizer.step()
    kept = param._local_tensor.clone()
    assert not same_bits(kept, torch.ones(2, 3))
    param.grad = usual
    with pytest.raises(RuntimeError, match="cannot redistribute"):
        optimizer.step()
    assert same_bits(param._local_tensor, kept)


def test_the_backends_of_parameters_are_named(mesh):
    params = {
        "whole": torch.nn.Parameter(torch.ones(4)),
        "sharded": torch.nn.Parameter(sharded(torch.ones(4), mesh)),
        "wrapped": torch.nn.Parameter(TwoTensor(torch.ones(4), torch.ones(4))),
        "sharded and wrapped": torch.nn.Parameter(
            sharded(TwoTensor(torch.ones(4), torch.ones(4)), mesh)
        ),
        "frozen": torch.nn.Parameter(torch.ones(4), requires_grad=False),
    }
    optimizer = FusedRAdam(params.items())
    expected = {"cpu": ["whole", "sharded"], "eager": ["wrapped", "sharded and wrapped"]}
    assert optimizer.backends() == expected
    assert not optimizer.state
    params["whole"].grad = torch.ones(4)
    optimizer.step()
    assert optimizer.backends() == expected
    slow = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("slow", slow)], "differentiable": True})
    assert optimizer.backends()["eager"] == [*expected["eager"], "slow"]


def test_a_local_tensor_that_is_a_wrapper_is_stepped_by_eager(mesh):
    value = torch.randn(4, 3)
    param = torch.nn.Parameter(sharded(TwoTensor(value.clone(), value.clone()), mesh))
    plain = torch.nn.Parameter(value.clone())
    optimizer, other = FusedRAdam([param], lr=0.1), FusedRAdam([plain], lr=0.1)
    for number in range(7):
        plain.grad = torch.randn(4, 3)
        param.grad = sharded(TwoTensor(plain.grad.clone(), plain.grad.clone()), mesh)
        with contextlib.ExitStack() as stack:
            if number == 0:  # it warns once
                reason = "TwoTensor keeps its memory in other tensors"
                stack.enter_context(pytest.warns(UserWarning, match=reason))
            optimizer.step()
        other.step()
    assert same_bits(param._local_tensor.a, plain.detach())
    assert same_bits(param._local_tensor.b, plain.detach())
    assert type(optimizer.state[param]["exp_avg"]._local_tensor) is TwoTensor


def test_unnamed_parameters_are_numbered():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = FusedRAdam([{"params": params[:1]}, {"params": params[1:]}], backend="eager")
    numbered = ["parameter 0 of group 0", "parameter 0 of group 1"]
    assert optimizer.backends() == {"eager": numbered}


def test_a_backend_that_cannot_step_says_so(mesh):
    wrapped = torch.nn.Parameter(sharded(TwoTensor(torch.ones(4), torch.ones(4)), mesh))
    optimizer = FusedRAdam([wrapped], backend="cpu")
    with pytest.raises(RuntimeError, match="TwoTensor keeps its memory in other tensors"):
        optimizer.backends()
