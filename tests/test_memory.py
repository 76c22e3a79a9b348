"""A steady step allocates nothing that grows with the model."""

import gc
import tracemalloc

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import parameters, sharded


def stepped(shapes, **options):
    params = parameters(*shapes)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = FusedRAdam(params, backend="cpu", **options)
    for _ in range(8):  # beyond the threshold
        optimizer.step()
    return optimizer


def tensor_bytes(optimizer, steps=3):
    """Bytes that torch allocates during some steps."""
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(steps):
            optimizer.step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())


def python_peak(optimizer):
    """The peak memory of new Python objects during a step, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        optimizer.step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        optimizer.step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}], ids=str)
def test_a_step_allocates_no_tensor_memory(options):
    assert tensor_bytes(stepped([(100_000,), (64, 16), ()], **options)) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_dtensors_allocates_no_tensor_memory(mesh):
    shapes = [(100_000,), (64, 16)]
    params = [torch.nn.Parameter(sharded(torch.ones(shape), mesh)) for shape in shapes]
    for p in params:
        p.grad = sharded(torch.ones_like(p._local_tensor), mesh)
    optimizer = FusedRAdam(params, backend="cpu")
    for _ in range(8):
        optimizer.step()
    assert tensor_bytes(optimizer) == 0


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_that_allocates_is_noticed():
    params = parameters((100_000,))
    params[0].grad = torch.ones(100_000)
    optimizer = torch.optim.RAdam(params)
    optimizer.step()
    assert tensor_bytes(optimizer) >= 3 * 400_000


@pytest.mark.parametrize("frozen", [0, 1], ids=["all-active", "one-frozen"])
def test_a_step_allocates_no_python_memory_per_tensor(frozen):
    optimizers = [stepped([(4,)] * count) for count in (10, 2000)]
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"][:frozen]:
            p.grad = None
    few, many = map(python_peak, optimizers)
    # A list with one pointer per tensor would have 16,000 bytes.
    assert many - few < 4000
