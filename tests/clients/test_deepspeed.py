"""DeepSpeed: ZeRO 0 to 3 on a CPU, as the optimizer of the client."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from .compare import OPTIMIZERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

STEPS, SAVED = 8, 4


def start(folder):
    """Make a process group of this process alone."""
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    store = torch.distributed.FileStore(f"{folder}/store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.set_num_threads(1)


def engine_of(stage, cls):
    import deepspeed

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))
    optimizer = cls(model.parameters(), lr=1e-2)
    config = {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, optimizer


def train(engine, steps):
    for step in steps:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        engine.backward((engine(x) - x.sum(1, keepdim=True)).square().mean())
        engine.step()


def weights(engine):
    import deepspeed

    params = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(params):
        return [p.detach().float().clone() for p in params]


def compare(stage, folder):
    """Train as with torch, and resume."""
    start(folder)
    found = {}
    for name, cls in OPTIMIZERS.items():
        engine, optimizer = engine_of(stage, cls)
        before = weights(engine)
        train(engine, range(SAVED))
        if name == "ours":
            engine.save_checkpoint(folder)
        train(engine, range(SAVED, STEPS))
        found[name] = weights(engine)
        assert not any(map(torch.equal, before, found[name]))
        if name == "ours":
            kinds = {type(launch).__name__ for launch in optimizer._plan.launches}
            assert kinds == {"CpuLaunch"}
    for ours, theirs in zip(found["ours"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    resumed, _ = engine_of(stage, OPTIMIZERS["ours"])
    resumed.load_checkpoint(folder)
    train(resumed, range(SAVED, STEPS))
    assert all(map(torch.equal, weights(resumed), found["ours"]))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_trains_as_with_torch_and_resumes_bit_for_bit(stage, tmp_path):
    """In a process of its own: DeepSpeed takes its accelerator from the environment."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(compare, stage, str(tmp_path)).result(400)
