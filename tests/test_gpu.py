"""Tests that need a GPU: streams, devices, memory, sizes beyond 2^31."""

import pytest
import torch

from radam_fused import FusedRAdam, backends

from .harness.helpers import assert_same_bits, gradients, launches_of, parameters
from .test_device_bits import assert_same_on_both, on, pair, step_both

pytestmark = [
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]


def stepped(gpu, shapes, **options):
    params = on(gpu.device, parameters(*shapes))
    optimizer = FusedRAdam(params, backend=gpu.name, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(8):
        optimizer.step()
    return params, optimizer


def without_cuda(monkeypatch):
    """Remove a backend. Its removal from the dict itself would put it last when it comes back."""
    others = {name: it for name, it in backends.BACKENDS.items() if name != "cuda"}
    monkeypatch.setattr(backends, "BACKENDS", others)


def test_auto_chooses_the_backends_in_their_order(gpu, monkeypatch):
    if gpu.name == "triton":
        without_cuda(monkeypatch)
    gpu.name, expected = "auto", {"cuda": "CudaLaunch", "triton": "TritonLaunch"}[gpu.name]
    params, optimizer = stepped(gpu, [(3,)])
    assert [type(launch).__name__ for launch in launches_of(optimizer)] == [expected]
    assert optimizer.state[params[0]]["step"].device.type == "cpu"


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("shapes", [[(1000,)], [(64, 16)] * 1000], ids=["one", "many"])
def test_a_step_neither_waits_nor_allocates(gpu, shapes, options):
    _, optimizer = stepped(gpu, shapes[: 9 if gpu.is_slow else None], **options)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
def test_a_step_runs_on_the_current_stream(gpu, options):
    """The step waits for a gradient that its stream has yet to write."""
    params = parameters((100_000,), *[(33,)] * 200)[gpu.is_slow : 9 if gpu.is_slow else None]
    ours, theirs = pair(gpu, params)
    ours.param_groups[0].update(options)
    stream = torch.cuda.Stream()
    steps = gradients(params, 8)
    for grads in steps:
        step_both([theirs], grads)
        there = [g.cuda() for g in grads]
        for p in ours.param_groups[0]["params"]:
            p.grad = torch.full_like(p, float("nan"))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            for p, g in zip(ours.param_groups[0]["params"], there, strict=True):
                p.grad.copy_(g)
            ours.step()
        stream.synchronize()
    assert_same_on_both(ours, theirs)


def test_another_device(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    params = parameters((1000,), (64, 16))
    steps = gradients(params, 8)
    there = [*on("cuda:1", params[:1]), *on("cuda:0", params[1:])]
    ours = FusedRAdam(there, backend=gpu.name)
    theirs = FusedRAdam(on("cpu", params), backend="cpu")
    for grads in steps:
        step_both([ours, theirs], grads)
    assert torch.cuda.current_device() == 0
    assert_same_on_both(ours, theirs)


@pytest.mark.parametrize("elements", [2**31 + 1027], ids=["2^31"])
def test_more_than_2_to_the_31_elements(gpu, elements):
    free, _ = torch.cuda.mem_get_info()
    if free < elements * 2 * 5:
        pytest.skip("not enough memory")
    p = torch.nn.Parameter(torch.ones(elements, dtype=torch.bfloat16, device="cuda"))
    p.grad = torch.full_like(p, 0.5)
    last = parameters((1027,), dtype=torch.bfloat16)
    options = {"lr": 0.1, "moments": "param"}
    with torch.no_grad():
        p[-1027:] = last[0].cuda()
    ours = FusedRAdam([p], backend=gpu.name, **options)
    theirs = FusedRAdam(last, backend="cpu", **options)
    for [grad] in gradients(last, 8):
        p.grad[-1027:] = grad.cuda()
        ours.step()
        step_both([theirs], [grad])
    assert_same_bits(p.detach()[-1027:].cpu(), last[0].detach())
    middle = p.detach()[: elements - 1027]
    assert (middle == middle[0]).all()
    assert middle[0] < 1
    for start in (0, 2**30, 2**31 - 8):
        assert_same_bits(p.detach()[start : start + 8].cpu(), middle[:8].cpu())


def test_parameters_on_the_cpu_and_on_a_gpu(gpu, monkeypatch):
    if gpu.name == "triton":
        without_cuda(monkeypatch)
    params = parameters((40,), (50,))
    mixed = [*on("cuda", params[:1]), *on("cpu", params[1:])]
    ours, theirs = FusedRAdam(mixed), FusedRAdam(on("cpu", params), backend="cpu")
    for grads in gradients(params, 8):
        step_both([ours, theirs], grads)
    assert_same_on_both(ours, theirs)


def test_a_checkpoint_moves_to_the_cpu(gpu):
    params = parameters((40,))
    ours, theirs = pair(gpu, params)
    steps = gradients(params, 8)
    for grads in steps[:4]:
        step_both([ours, theirs], grads)
    back = FusedRAdam(on("cpu", ours.param_groups[0]["params"]), backend="cpu")
    back.load_state_dict(ours.state_dict())
    for grads in steps[4:]:
        step_both([back, theirs], grads)
    assert_same_on_both(back, theirs)


def test_flat_buffers(gpu):
    params = parameters((5, 3), (), (0,), (64, 16), (1025,))
    ours, theirs = pair(gpu, params, flatten=True)
    for t, grads in enumerate(gradients(params, 9)):
        step_both([ours, theirs], [None if i == t % 3 else g for i, g in enumerate(grads)])
    assert_same_on_both(ours, theirs)
    ours.flat_buffers[0].check()
