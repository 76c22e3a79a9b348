"""max_grad_norm with sharded parameters: the norm of one process, on every mesh."""

from math import inf, nan

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from radam_fused import FusedRAdam, spread

from ..harness.clipping import FINE, true_norm
from .layouts import parallelize, shard
from .models import (
    STEPS,
    Block,
    Twin,
    backward,
    follow,
    give_gradients,
    new_model,
    own_part,
    placed_gradient,
    whole,
)
from .processes import on
from .test_same_bits import LAYOUTS

LR = 0.05
NORMS = {"max_grad_norm": 0.5, "track_update_norm": True, "per_parameter_norms": True}
MEASURES = ("grad_norm", "update_norm", "grad_norms", "update_norms")


def steps_of(layout, size):
    """The norms of each step, and the whole parameters after the last one."""
    model = LAYOUTS[layout](size)
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, **NORMS)
    found = []
    for step in range(STEPS):
        give_gradients(model, step)
        optimizer.step()
        found.append([getattr(optimizer, name) for name in MEASURES])
    return found, [whole(param) for param in model.parameters()]


@pytest.fixture(scope="module")
def expected():
    return steps_of("plain", 1)


CASES = [
    ("plain", 2),
    ("FSDP2", 1),
    ("FSDP2", 2),
    ("FSDP2", 3),
    ("FSDP2", 4),
    ("HSDP", 4),
    ("FSDP2 and TP", 4),
    ("TP", 2),
    ("TP", 3),
    ("TP with sequences", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "size"), CASES)
def test_a_layout_has_the_norms_of_one_process(layout, size, expected, processes):
    results = processes.run(size, steps_of, layout, size)
    for norms, params in results:
        for found, true in zip(norms, expected[0], strict=True):
            for one, other in zip(found, true, strict=True):
                torch.testing.assert_close(one, other, rtol=FINE, atol=0)
        # A coefficient can differ in its last bit, but hardly ever does after its rounding.
        for param, other in zip(params, expected[1], strict=True):
            torch.testing.assert_close(param, other, rtol=1e-6, atol=1e-8)
    for norms, _ in results[1:]:  # all processes have the same bits
        for found, first in zip(norms, results[0][0], strict=True):
            assert all(map(torch.equal, found, first))


def test_the_norm_is_that_of_the_truth(expected):
    model = new_model()
    for step, found in enumerate(expected[0]):
        give_gradients(model, step)
        grads = [param.grad for param in model.parameters()]
        assert found[0].item() == pytest.approx(true_norm(grads), rel=FINE)
        assert found[0].item() == pytest.approx(
            clip_grad_norm_(model.parameters(), inf).item(), rel=1e-6
        )


@pytest.mark.parametrize("method", ["DDP", "FSDP2", "TP"])
@on(2)
def test_a_training_follows_a_plain_twin(method):
    model = new_model()
    mesh = init_device_mesh("cpu", (2,))
    parallel = {
        "DDP": DistributedDataParallel,
        "FSDP2": shard,
        "TP": lambda model: parallelize(model, mesh),
    }[method](model)
    options = {"lr": LR, "max_grad_norm": 0.3}
    optimizer = FusedRAdam(model.named_parameters(), **options)
    part = slice(None) if method == "TP" else own_part()
    norms = []

    def give(step):
        norms.append(optimizer.grad_norm)
        backward(parallel, step, part)

    follow(model, optimizer, give, **options)
    assert max(norm.item() for norm in norms[1:]) > 0.3


@on(2)
def test_scaled_gradients():
    model = shard(new_model())
    options = {"lr": LR, "max_grad_norm": 0.3}
    optimizer = FusedRAdam(model.named_parameters(), fused=True, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    twin = Twin(model, **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step, own_part(), scaler.get_scale())
        for name, param in model.named_parameters():
            twin.params[name].grad = placed_gradient(param) / scaler.get_scale()
        twin.optimizer.step()
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        twin.check(optimizer)


# Meshes.


def on_meshes(size):
    """Parameters on several meshes of four processes, and their whole values."""
    flat = init_device_mesh("cpu", (size,))
    both = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("own", "expert"))
    generator = torch.Generator().manual_seed(3)
    placed = [
        (None, None),
        (flat, [Shard(0)]),  # dense
        (both, [Shard(1), Shard(0)]),  # experts, each sharded
        (both["expert"], [Shard(0)]),  # experts, replicated over the other dimension
        (both, [Replicate(), Replicate()]),
        (flat, [Shard(0)]),
        (both, [Replicate(), Shard(1)]),
        (None, None),
    ]
    wholes = [torch.randn(6, 10, generator=generator) for _ in placed]
    values = [
        value if mesh is None else distribute_tensor(value, mesh, placements)
        for value, (mesh, placements) in zip(wholes, placed, strict=True)
    ]
    return [Parameter(value) for value in values], wholes


def gradient_like(param, value):
    if not isinstance(param, DTensor):
        return value.clone()
    return distribute_tensor(value, param.device_mesh, param.placements)


@on(4)
def test_parameters_on_several_meshes():
    params, values = on_meshes(4)
    optimizer = FusedRAdam(params, **NORMS)
    plain = FusedRAdam([Parameter(value.clone()) for value in values], **NORMS)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(6, 10, generator=generator) for _ in params]
        for p, q, grad in zip(params, plain.param_groups[0]["params"], grads, strict=True):
            p.grad, q.grad = gradient_like(p, grad), grad
        optimizer.step()
        plain.step()
        for name in MEASURES:
            found, true = getattr(optimizer, name), getattr(plain, name)
            torch.testing.assert_close(found, true, rtol=FINE, atol=0)
    for p, q in zip(params, plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=1e-6, atol=1e-8)


@on(2)
def test_a_gradient_that_one_process_lacks():
    """As of an expert that has seen no token on one process."""
    mesh = init_device_mesh("cpu", (2,))
    params = [Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])) for _ in range(2)]
    optimizer = FusedRAdam(params, **NORMS)
    for step in range(3):
        for i, param in enumerate(params):
            has_none = (i + step) % 2 == 0 and dist.get_rank() == 0
            local = torch.full((2, 3), 2.0)
            param.grad = None if has_none else DTensor.from_local(local, mesh, [Shard(0)])
        optimizer.step()
        # Three of four shards have six elements 2.
        assert optimizer.grad_norm.item() == pytest.approx((3 * 6 * 4) ** 0.5, rel=FINE)


@on(3)
def test_a_process_without_any_gradient():
    mesh = init_device_mesh("cpu", (3,))
    param = Parameter(distribute_tensor(torch.ones(6), mesh, [Shard(0)]))
    optimizer = FusedRAdam([param], max_grad_norm=1.0)
    for _ in range(2):
        if dist.get_rank() != 1:
            param.grad = DTensor.from_local(torch.ones(2), mesh, [Shard(0)])
        optimizer.step()
        assert optimizer.grad_norm.item() == 2.0


@on(4)
def test_empty_shards():
    mesh = init_device_mesh("cpu", (4,))
    value = torch.arange(5.0)
    param = Parameter(distribute_tensor(value, mesh, [Shard(0)]))
    optimizer = FusedRAdam([param], **NORMS)
    param.grad = distribute_tensor(value, mesh, [Shard(0)])
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(30**0.5, rel=FINE)


@pytest.mark.parametrize("value", [nan, inf])
@on(2)
def test_all_processes_skip_a_step(value):
    model = shard(new_model())
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, skip_nonfinite=True)
    twin = Twin(model, lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step, own_part())
        if step % 3 == 1:
            if dist.get_rank() == 1:
                model.out.weight.grad._local_tensor.view(-1)[0] = value
        else:
            twin.step()
        optimizer.step()
        twin.check(optimizer)
    assert optimizer.skipped_steps == 3


@on(2)
def test_an_error_on_one_process_is_one_on_all():
    model = shard(new_model())
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, max_grad_norm=1.0)
    twin = Twin(model, lr=LR, max_grad_norm=1.0)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step, own_part())
        if step % 2:
            lr = optimizer.param_groups[0]["lr"]
            if dist.get_rank() == 1:
                optimizer.param_groups[0]["lr"] = -1.0
            text = "Invalid learning rate" if dist.get_rank() == 1 else "another process failed"
            with pytest.raises((ValueError, RuntimeError), match=text):
                optimizer.step()
            optimizer.param_groups[0]["lr"] = lr
        else:
            twin.step()
            optimizer.step()
        twin.check(optimizer)


@on(2)
def test_an_error_while_one_process_sums_is_one_on_all():
    model = shard(new_model())
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, max_grad_norm=1.0)
    backward(model, 0, own_part())
    optimizer.step()
    if dist.get_rank() == 1:
        for launch in optimizer._plan.launches:
            launch.sum_squares = fails
    before = [whole(param) for param in model.parameters()]
    text = "out of memory" if dist.get_rank() == 1 else "another process failed"
    with pytest.raises(RuntimeError, match=text):
        optimizer.step()
    for param, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(whole(param), old)


def fails(*_):
    raise RuntimeError("out of memory")


# Parameters that are spread without DTensors.


@on(2)
def test_zero_redundancy_optimizer():
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    model = new_model()
    parallel = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        FusedRAdam,
        lr=LR,
        max_grad_norm=0.3,
    )
    optimizer.optim.grad_norm_group = dist.group.WORLD
    twin = Twin(model, lr=LR, max_grad_norm=0.3)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(parallel, step, own_part())
        twin.step()
        optimizer.step()
        twin.check()
        norm, true = optimizer.optim.grad_norm, twin.optimizer.grad_norm
        torch.testing.assert_close(norm, true, rtol=FINE, atol=0)


@pytest.mark.filterwarnings("ignore")
@on(2)
def test_fully_sharded_data_parallel():
    """FSDP1."""
    model = FullyShardedDataParallel(
        new_model(),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    plain, options = new_model(), {"lr": LR, "max_grad_norm": 0.3}
    group = dist.group.WORLD
    optimizer = FusedRAdam(model.parameters(), grad_norm_group=group, **options)
    true = FusedRAdam(plain.parameters(), **options)
    for step in range(STEPS):
        for net, it, part in ((model, optimizer, own_part()), (plain, true, slice(None))):
            it.zero_grad()
            backward(net, step, part)
            it.step()
        # The gradients of two processes are averaged: they differ by roundings.
        torch.testing.assert_close(optimizer.grad_norm, true.grad_norm, rtol=1e-5, atol=0)


class WithoutGloo:
    """A process group that has a backend for GPUs only."""

    def _get_backend(self, device):
        raise RuntimeError(f"No backend type associated with device type {device.type}")


def test_a_group_without_a_backend_for_the_device():
    param = Parameter(torch.ones(3))
    optimizer = FusedRAdam([param], max_grad_norm=1.0, grad_norm_group=WithoutGloo())
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"a backend for cpu.*'cpu:gloo,cuda:nccl'"):
        optimizer.step()
    assert not optimizer.state


# Negative controls.


def wrong_norm(found):
    """The norms by several processes if the sharding is taken for another one."""
    params, values = on_meshes(4)
    optimizer = FusedRAdam(params, max_grad_norm=1.0)
    sharding_groups = spread._sharding_groups
    spread._sharding_groups = found
    try:
        for param, value in zip(params, values, strict=True):
            param.grad = gradient_like(param, value)
        optimizer.step()
    finally:
        spread._sharding_groups = sharding_groups
    return optimizer.grad_norm.item(), true_norm(values)


def by_first_dimension(param):
    """Takes the first dimension of a mesh for the one that is sharded."""
    return (param.device_mesh.get_group(0),) if isinstance(param, DTensor) else ()


def by_all_dimensions(param):
    """Counts replicated dimensions as well."""
    if not isinstance(param, DTensor):
        return ()
    return tuple(param.device_mesh.get_group(i) for i in range(param.device_mesh.ndim))


def by_no_dimension(param):
    return ()


@pytest.mark.parametrize(
    "found", [by_first_dimension, by_all_dimensions, by_no_dimension], ids=lambda f: f.__name__
)
@on(4)
def test_a_wrong_mesh_dimension_is_noticed(found):
    norm, true = wrong_norm(found)
    assert norm != pytest.approx(true, rel=1e-3)
