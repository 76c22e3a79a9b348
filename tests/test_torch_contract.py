"""The behaviour that torch.optim specifies for every optimizer."""

import copy
import pickle
import warnings

import pytest
import torch
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from radam_fused import FusedRAdam

from .harness.helpers import TORCH_OPTIONS, assert_same_run, gradients, parameters, train


def assert_follows_torch(ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", TORCH_OPTIONS.values(), ids=TORCH_OPTIONS)
def test_follows_torch_radam(options, backend):
    ours, theirs = parameters((5, 3), (17,)), parameters((5, 3), (17,))
    steps = gradients(ours, 40)
    train(FusedRAdam(ours, backend=backend, **options), steps)
    train(torch.optim.RAdam(theirs, **options), steps)
    assert_follows_torch(ours, theirs)


def test_positional_arguments_are_those_of_torch():
    arguments = (0.1, (0.8, 0.99), 1e-4, 0.01, True)
    ours = FusedRAdam(parameters((2,)), *arguments).param_groups[0]
    theirs = torch.optim.RAdam(parameters((2,)), *arguments).param_groups[0]
    del ours["params"], theirs["params"]
    assert ours == theirs
    assert list(ours) == list(theirs)


def test_groups_with_different_options_and_added_later():
    def build(cls, params):
        optimizer = cls([{"params": params[:1], "lr": 0.1}, {"params": [params[1]]}], lr=0.01)
        optimizer.add_param_group(
            {"params": params[2:], "weight_decay": 0.1, "betas": (0.5, 0.9), "maximize": True}
        )
        return optimizer

    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    steps = gradients(ours, 12)
    train(build(FusedRAdam, ours), steps)
    train(build(torch.optim.RAdam, theirs), steps)
    assert_follows_torch(ours, theirs)


def test_own_options_differ_between_groups():
    together, alone = parameters((3,), (3,)), parameters((3,), (3,))
    options = [{"amsgrad": True, "betas": (0.9, 0.9)}, {"degenerated_to_sgd": False}]
    steps = gradients(together, 9)
    optimizer = FusedRAdam([{"params": [p], **o} for p, o in zip(together, options, strict=True)])
    train(optimizer, steps)
    for i, (p, o) in enumerate(zip(alone, options, strict=True)):
        train(FusedRAdam([p], **o), [[grads[i]] for grads in steps])
        assert torch.equal(p, together[i])
    assert "max_exp_avg_sq" in optimizer.state[together[0]]
    assert "max_exp_avg_sq" not in optimizer.state[together[1]]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_tensor_learning_rate_is_read_at_every_step(shape, backend):
    ours, theirs = parameters((4,)), parameters((4,))
    lr = torch.full(shape, 0.1, dtype=torch.float64)
    one, other = FusedRAdam(ours, lr=lr, backend=backend), FusedRAdam(theirs, lr=0.1)
    for i, grads in enumerate(gradients(ours, 8)):
        lr.fill_(0.1 / (i + 1))
        other.param_groups[0]["lr"] = 0.1 / (i + 1)
        train(one, [grads])
        train(other, [grads])
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
        lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=4),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    ],
    ids=["OneCycleLR", "CyclicLR", "CosineAnnealingLR", "LambdaLR"],
)
def test_schedulers(schedule):
    ours, theirs = parameters((6,)), parameters((6,))
    one, other = FusedRAdam(ours, lr=0.01), torch.optim.RAdam(theirs, lr=0.01)
    schedulers = schedule(one), schedule(other)
    for grads in gradients(ours, 18):
        train(one, [grads])
        train(other, [grads])
        for scheduler in schedulers:
            scheduler.step()
    assert one.param_groups[0]["betas"] == other.param_groups[0]["betas"]
    assert_follows_torch(ours, theirs)


def test_closure_runs_with_gradients_and_its_loss_is_returned(backend):
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend=backend)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    before = p.detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert loss.item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(p, before)
    assert optimizer.step() is None


def test_hooks_run_in_the_order_of_torch():
    [p] = parameters((3,))
    p.grad = torch.ones(3)
    optimizer, calls = FusedRAdam([p]), []

    def recorder(name):
        return lambda *_: calls.append(name)

    handles = [
        register_optimizer_step_pre_hook(recorder("global before")),
        register_optimizer_step_post_hook(recorder("global after")),
    ]
    try:
        optimizer.register_step_pre_hook(recorder("before"))
        optimizer.register_step_post_hook(recorder("after"))
        optimizer.register_state_dict_pre_hook(recorder("saving"))
        optimizer.register_state_dict_post_hook(recorder("saved"))
        optimizer.register_load_state_dict_pre_hook(recorder("loading"))
        optimizer.register_load_state_dict_post_hook(recorder("loaded"))
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        for handle in handles:
            handle.remove()
    steps = ["global before", "before", "after", "global after"]
    assert calls == [*steps, "saving", "saved", "loading", "loaded"]


def test_pre_hook_may_change_gradients_and_arguments():
    [p] = parameters((3,))
    p.grad = torch.ones(3)
    optimizer = FusedRAdam([p])
    optimizer.register_step_pre_hook(lambda o, *_: setattr(p, "grad", torch.zeros(3)))
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_profiler_sees_the_step_and_its_backend(backend):
    [p] = parameters((3,))
    p.grad = torch.ones(3)
    optimizer = FusedRAdam([p], backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile() as profile:
            optimizer.step()
    keys = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#FusedRAdam.step", f"radam_fused.{backend}"} <= keys


def test_parameters_without_gradient_keep_their_own_step(backend):
    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    one, other = FusedRAdam(ours, backend=backend), torch.optim.RAdam(theirs, foreach=False)
    steps = gradients(ours, 15)
    for i, grads in enumerate(steps):
        if i < 4 or i % 3 == 0:
            grads[1] = None
        if i >= 9:
            grads[2] = None  # frozen during the run
        train(one, [grads])
        train(other, [grads])
    for p, q in zip(ours, theirs, strict=True):
        assert one.state[p]["step"] == other.state[q]["step"]
    assert len({float(one.state[p]["step"]) for p in ours}) == 3
    assert_follows_torch(ours, theirs)


def test_no_state_before_the_first_gradient(backend):
    params = parameters((3,), (4,))
    optimizer = FusedRAdam(params, backend=backend)
    optimizer.step()
    assert not optimizer.state
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state) == {params[0]}
    assert optimizer.state[params[0]]["step"].shape == ()
    assert optimizer.state[params[0]]["step"].device.type == "cpu"


@pytest.mark.parametrize("shape", [(0,), (0, 4), ()], ids=str)
def test_empty_and_scalar_parameters(shape, backend):
    params = parameters(shape, (3,))
    optimizer = train(FusedRAdam(params, backend=backend), gradients(params, 7))
    assert [float(optimizer.state[p]["step"]) for p in params] == [7, 7]


def test_only_empty_parameters_and_empty_groups(backend):
    [p] = parameters((0,))
    optimizer = FusedRAdam([{"params": []}, {"params": [p]}], backend=backend)
    train(optimizer, gradients([p], 2))
    assert optimizer.state[p]["step"] == 2


def test_no_parameters_raise_the_error_of_torch():
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        FusedRAdam([])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none, backend):
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend=backend)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        p.square().sum().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert p.grad is None if set_to_none else not p.grad.any()


def test_backward_after_a_step_raises_as_with_torch(backend):
    def stale(make):
        [p] = parameters((3,))
        p.grad = torch.ones(3)
        loss = p.square().sum()
        make([p]).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation") as error:
            loss.backward()
        return str(error.value)

    ours = stale(lambda ps: FusedRAdam(ps, backend=backend))
    assert "version" in ours
    stale(torch.optim.RAdam)


@pytest.mark.parametrize("size", [3, 100_000])
def test_a_step_increments_the_version_of_every_updated_parameter(size, backend):
    params = parameters((size,), (4,))
    optimizer = train(FusedRAdam(params, amsgrad=True, backend=backend), gradients(params, 1))
    params[1].grad = None  # frozen
    before = [p._version for p in params]
    optimizer.step()
    assert params[0]._version > before[0]
    assert params[1]._version == before[1]


def test_steps_under_inference_mode(backend):
    ours, theirs = parameters((3,)), parameters((3,))
    steps = gradients(ours, 7)
    one, other = FusedRAdam(ours, backend=backend), FusedRAdam(theirs, backend=backend)
    for grads in steps:
        for p, g in zip(ours, grads, strict=True):
            p.grad = g
        with torch.inference_mode():
            one.step()
    train(other, steps)
    assert all(map(torch.equal, ours, theirs))


def test_differentiable_step():
    """Autograd differentiates the step, as hyper-gradient methods require."""
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def run(rate):
        start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        p = start.clone()
        p.retain_grad()
        optimizer = FusedRAdam([p], lr=rate, differentiable=True)
        for _ in range(7):
            p.grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
            optimizer.step()
        return p.square().sum()

    run(lr).backward()
    plus, minus = (run(torch.tensor(0.1 + d, dtype=torch.float64)) for d in (1e-6, -1e-6))
    assert lr.grad.item() == pytest.approx((plus - minus).item() / 2e-6, rel=1e-5)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_deepcopy_and_pickle(through):
    params = parameters((3,), (5,))
    steps = gradients(params, 14)
    optimizer = FusedRAdam(params, lr=0.1, amsgrad=True, backend="cpu")
    train(optimizer, steps[:7])
    twin = through(optimizer)
    assert (twin.backend, twin.defaults) == (optimizer.backend, optimizer.defaults)
    train(optimizer, steps[7:])
    train(twin, steps[7:])
    assert twin.param_groups[0]["params"][0] is not params[0]
    assert_same_run(optimizer, twin)


def test_swa_and_ema():
    model = torch.nn.Linear(4, 2)
    optimizer = FusedRAdam(model.parameters(), lr=0.1)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert not torch.equal(average.module.weight, model.weight)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(overflow):
    [p], [q] = parameters((4,)), parameters((4,))
    one, other = FusedRAdam([p]), FusedRAdam([q])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(one, [[torch.ones(4)]])
    train(other, [[torch.ones(4)]])
    one.zero_grad()
    scaler.scale((p * (float("inf") if overflow else 1.0)).sum()).backward()
    scaler.step(one)
    scaler.update()
    if not overflow:
        train(other, [[torch.ones(4)]])
    assert_same_run(one, other)


def test_step_under_torch_compile():
    ours, theirs = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    one, other = FusedRAdam(ours.parameters(), lr=0.1), FusedRAdam(theirs.parameters(), lr=0.1)
    x = torch.randn(3, 4)

    def train_step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    compiled = torch.compile(train_step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(7):
            compiled(ours, one)
            train_step(theirs, other)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("of_subclass", [False, True])
def test_torch_compile_breaks_once_and_never_again(of_subclass):
    """At the step itself, also while a scheduler changes the learning rate."""
    [p] = parameters((3,))
    p.grad = torch.ones(3)
    cls = type("Mine", (FusedRAdam,), {}) if of_subclass else FusedRAdam
    optimizer = cls([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=60)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(50):
            compiled()
            scheduler.step()
    [(reason, count)] = counters["graph_break"].items()
    assert count == 1
    assert "FusedOptimizer.step" in reason
    assert counters["frames"]["total"] == 1
    assert len(called) == 50
    assert optimizer.state[p]["step"] == 50


def test_repr_names_the_optimizer_and_its_options():
    text = repr(FusedRAdam(parameters((2,)), amsgrad=True))
    assert text.startswith("FusedRAdam (")
    assert "amsgrad: True" in text
    assert "rectify" not in text
