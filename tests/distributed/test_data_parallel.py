"""DDP, ZeRO-1 and FSDP1: equal to one process, stepped by the fused backend."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam

from .models import STEPS, Block, Twin, assert_trained_alike, backward, new_model, own_part
from .processes import on

LR = 0.05


def assert_same_on_every_rank(model):
    for param in model.parameters():
        others = [torch.empty_like(param) for _ in range(dist.get_world_size())]
        dist.all_gather(others, param.detach())
        assert all(torch.equal(other, param) for other in others)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}],
    ids=["default", "bucket view", "static graph"],
)
@on(3)
def test_distributed_data_parallel(options):
    model = new_model()
    parallel = DistributedDataParallel(model, **options)
    optimizer = FusedRAdam(model.named_parameters(), lr=LR)
    twin = Twin(model, lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        backward(parallel, step, own_part())
        twin.step()
        optimizer.step()
        twin.check(optimizer)
    assert list(optimizer.backends()) == ["cpu"]
    assert_trained_alike(model, lr=LR)
    assert_same_on_every_rank(model)


@pytest.mark.parametrize("as_bucket_view", [False, True])
@on(3)
def test_zero_redundancy_optimizer(as_bucket_view):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    model = new_model()
    parallel = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), FusedRAdam, parameters_as_bucket_view=as_bucket_view, lr=LR
    )
    twin = Twin(model, lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(parallel, step, own_part())
        twin.step()
        optimizer.step()
        twin.check()
    assert list(optimizer.optim.backends()) == ["cpu"]
    assert 0 < len(optimizer.optim.state) < len(twin.params)
    assert_trained_alike(model, lr=LR)
    assert_same_on_every_rank(model)


@on(2)
def test_flat_buffers_do_not_take_parameters_out_of_buckets():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = new_model()
    parallel = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), FusedRAdam, parameters_as_bucket_view=True, lr=LR, flatten=True
    )
    backward(parallel, 0, own_part())
    with pytest.raises(ValueError, match="cannot return to its flat buffer"):
        optimizer.step()


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
@pytest.mark.filterwarnings("ignore")
@on(2)
def test_fully_sharded_data_parallel(strategy):
    """FSDP1. Its parameters are views of flat shards, so only whole results are compared."""
    model = FullyShardedDataParallel(
        new_model(),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        sharding_strategy=ShardingStrategy[strategy],
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    optimizer = FusedRAdam(model.named_parameters(), lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step, own_part())
        optimizer.step()
    assert list(optimizer.backends()) == ["cpu"]
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        assert_trained_alike(model.module, lr=LR)
