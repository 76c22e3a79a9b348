"""What torch.optim promises of any optimizer."""

import copy
import gc
import os
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from radam_fused import FusedRAdam
from radam_fused.extension import _C

from .helpers import TORCH_OPTIONS, assert_same_run, copies, gradients, parameters, train


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


def test_positional_arguments_are_torch_s():
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


def test_hooks_run_in_torch_s_order():
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


def test_profiler_sees_the_step():
    [p] = parameters((3,))
    p.grad = torch.ones(3)
    optimizer = FusedRAdam([p])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile() as profile:
            optimizer.step()
    assert any(event.key == "Optimizer.step#FusedRAdam.step" for event in profile.key_averages())


def test_parameters_without_gradient_keep_their_own_step(backend):
    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    one, other = FusedRAdam(ours, backend=backend), torch.optim.RAdam(theirs, foreach=False)
    steps = gradients(ours, 15)
    for i, grads in enumerate(steps):
        if i < 4 or i % 3 == 0:
            grads[1] = None
        if i >= 9:
            grads[2] = None  # frozen in mid-run
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


def test_no_parameters_at_all_is_torch_s_error():
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


def test_backward_after_a_step_raises_as_after_torch_s(backend):
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
def test_every_stepped_parameter_counts_a_version(size, backend):
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
    """Autograd through the step, as hyper-gradient methods need it."""
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


def test_repr_names_the_optimizer_and_its_options():
    text = repr(FusedRAdam(parameters((2,)), amsgrad=True))
    assert text.startswith("FusedRAdam (")
    assert "amsgrad: True" in text
    assert "rectify" not in text


def repoint(optimizer, p):
    p.data = p.data.clone()


def transpose_in_place(optimizer, p):
    p.data = p.data.t().clone(memory_format=torch.contiguous_format).t()


def replace_moment(optimizer, p):
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"] * 2


def repoint_moment(optimizer, p):
    optimizer.state[p]["exp_avg"].data = optimizer.state[p]["exp_avg"].data * 2


def rewind_counter(optimizer, p):
    optimizer.state[p]["step"].fill_(3)


def replace_counter(optimizer, p):
    optimizer.state[p]["step"] = torch.tensor(3.0)


def replace_counter_by_a_number(optimizer, p):
    optimizer.state[p]["step"] = 3


def replace_state(optimizer, p):
    optimizer.state[p] = {k: v.clone() for k, v in optimizer.state[p].items()}


def reorder_state(optimizer, p):
    optimizer.state[p] = optimizer.state.pop(p)


def forget_state(optimizer, p):
    del optimizer.state[p]


def forget_every_state(optimizer, p):
    optimizer.state.clear()


def turn_on_amsgrad(optimizer, p):
    optimizer.param_groups[0]["amsgrad"] = True


def widen(optimizer, p):
    p.data = p.data.double()
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[p][key] = optimizer.state[p][key].double()


def drop_from_group(optimizer, p):
    optimizer.param_groups[0]["params"].remove(p)


def replace_group(optimizer, p):
    optimizer.param_groups[0] = dict(optimizer.param_groups[0], lr=0.05)


def split_group(optimizer, p):
    [group] = optimizer.param_groups
    other = {**group, "params": [group["params"].pop()], "lr": 0.05}
    optimizer.param_groups.append(other)


CHANGES = [
    repoint,
    transpose_in_place,
    replace_moment,
    repoint_moment,
    rewind_counter,
    replace_counter,
    replace_counter_by_a_number,
    replace_state,
    reorder_state,
    forget_state,
    forget_every_state,
    turn_on_amsgrad,
    widen,
    drop_from_group,
    replace_group,
    split_group,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_steps_is_followed(change, backend):
    """The run must equal one whose every step plans from nothing."""
    outcomes = []
    for planned in (True, False):
        params = parameters((4, 4), (4, 4))
        optimizer = FusedRAdam(params, lr=0.1, backend=backend)
        for i, grads in enumerate(gradients(params, 12)):
            if i == 8:
                change(optimizer, params[0])
            if not planned:
                optimizer.__setstate__({})
            for p, g in zip(params, grads, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
        outcomes.append([p.detach().clone() for p in params])
    assert all(map(torch.equal, *outcomes))


def test_gradients_are_let_go_after_the_step():
    """zero_grad(set_to_none=True) must free their memory."""
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend="cpu")
    for _ in range(2):
        p.grad = torch.ones(3)
        watched = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert watched() is None


def test_copied_parameters_follow_by_hand():
    """A run interrupted by copying everything by hand continues unchanged."""
    params = parameters((5,))
    steps = gradients(params, 12)
    straight = train(FusedRAdam(copies(params)), steps)
    first = train(FusedRAdam(params), steps[:5])
    second = FusedRAdam(copies(params))
    [p] = second.param_groups[0]["params"]
    second.state[p] = {k: v.clone() for k, v in first.state[params[0]].items()}
    assert_same_run(straight, train(second, steps[5:]))


def test_threads_step_one_after_the_other():
    """All gradients are kept: torch itself must not free one while another thread reads it."""
    [p] = parameters((400_000,))
    optimizer = FusedRAdam([p], backend="cpu")
    errors, kept = [], [torch.ones(400_000) for _ in range(60)]

    def work(grads):
        for i in range(30):
            p.grad = kept[30 * (grads // 2) + i] if grads else None
            try:
                optimizer.step()
            except Exception as error:  # shown by the assertion
                errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(grads,)) for grads in (1, 0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A gradient that another thread takes away between two looks at it is an error that says so.
    assert all("changed while the step was prepared" in error for error in errors), errors
    assert p.isfinite().all()
    assert 1 <= optimizer.state[p]["step"] <= 90


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_forked_during_a_step_can_step():
    [p] = parameters((5,))
    optimizer = train(FusedRAdam([p], backend="cpu"), gradients([p], 1))
    with optimizer._lock:  # as another thread would hold it
        child = os.fork()
        if child == 0:
            optimizer.step()
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_is_dropped_before_the_kernel_runs_keeps_its_memory(monkeypatch):
    params = parameters((400_000,))
    ours, plain = FusedRAdam(copies(params), backend="cpu"), FusedRAdam(params, backend="cpu")
    first, second = gradients(params, 2)
    for optimizer in (ours, plain):
        train(optimizer, [first])
    [p] = ours.param_groups[0]["params"]
    [launch] = ours._launches
    compute, dropped, poison = launch.compute, [], []

    def drop(step):
        compute(step)
        dropped.extend(weakref.ref(t) for t in (p.grad, ours.state[p]["exp_avg"]))
        p.grad = None
        del ours.state[p]["exp_avg"]
        poison.append(torch.full((400_000,), float("nan")))  # takes the memory if it is free

    monkeypatch.setattr(launch, "compute", drop)
    for p_, g in zip([p, params[0]], [second[0].clone(), second[0].clone()], strict=True):
        p_.grad = g
    for optimizer in (ours, plain):
        optimizer.step()
    assert poison
    assert torch.equal(p, params[0])
    assert [tensor() for tensor in dropped] == [None, None]  # let go after the step


def state_tensors(optimizer):
    return [t for state in optimizer.state.values() for t in state.values()]


DROPS = {
    "cleared": lambda optimizer: optimizer.state.clear(),
    "replaced": lambda optimizer: [
        state.update({k: v.clone() for k, v in state.items()}) for state in optimizer.state.values()
    ],
    "popped-group": lambda optimizer: optimizer.state.pop(
        optimizer.param_groups.pop()["params"][0]
    ),
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_nothing_that_torch_would_let_go_is_kept_alive(drop, backend):
    params = parameters((40,), (300,))
    optimizer = FusedRAdam([{"params": [p]} for p in params], backend=backend)
    train(optimizer, gradients(params, 3))
    before = [weakref.ref(tensor) for tensor in state_tensors(optimizer)]
    last = weakref.ref(params.pop())
    drop(optimizer)
    held = {id(tensor) for tensor in state_tensors(optimizer)}
    alive = [ref() for ref in before if ref() is not None]
    assert all(id(tensor) in held for tensor in alive)
    assert len(alive) < len(before)
    if len(optimizer.param_groups) == 1:
        assert last() is None


def test_states_keep_their_tensors(backend):
    """Also through other gradients, a loaded option, and flat buffers."""
    for flatten in (False, True) if backend != "eager" else (False,):
        params = parameters((5, 3), (40,))
        optimizer = FusedRAdam(params, backend=backend, flatten=flatten)
        train(optimizer, gradients(params, 2))
        before = state_tensors(optimizer)
        optimizer.__setstate__({})
        params[0].grad_dtype = None
        params[0].grad = torch.ones(5, 3, dtype=torch.float64)
        optimizer.step()
        after = state_tensors(optimizer)
        assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("flatten", [False, True], ids=["", "flat"])
def test_every_tensor_has_a_storage_of_its_own(flatten):
    params = parameters(*[(4, 2)] * 20, (70_000,))
    optimizer = train(FusedRAdam(params, flatten=flatten, backend="cpu"), gradients(params, 2))
    tensors = [*params, *state_tensors(optimizer)]
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    state = optimizer.state[params[0]]
    assert len(pickle.dumps(state["exp_avg"])) < 2000
    assert copy.deepcopy(state["exp_avg"]).untyped_storage().nbytes() == 32
    state["exp_avg"].mul_(1.0)  # which autograd forbids for a view that unbind() has made


def test_small_states_lie_side_by_side_up_to_a_megabyte():
    params = parameters(*[(64, 16)] * 300, (70_000,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 1))
    at = [optimizer.state[p]["exp_avg"].data_ptr() for p in params[:-1]]
    assert at[1:256] == [address + 4096 for address in at[:255]]
    assert at[256] != at[255] + 4096


def test_memory_of_a_slice_is_freed_with_the_last_of_them():
    buffer = torch.arange(10.0)
    freed = weakref.ref(buffer)
    slices = [_C.slice_of(buffer, offset, [2, 2], [2, 1]) for offset in (0, 4)]
    del buffer
    gc.collect()
    assert [part.tolist() for part in slices] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    slices.pop()
    assert freed() is not None
    slices.clear()
    assert freed() is None


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(-1, [2], [1]), (9, [2], [1]), (0, [3, 4], [4, 1])]
)
def test_a_slice_beyond_its_buffer_is_an_error(offset, shape, strides):
    with pytest.raises(ValueError, match="does not lie within its buffer"):
        _C.slice_of(torch.zeros(10), offset, shape, strides)


def test_a_parameter_in_shared_memory_is_followed():
    params = parameters((5,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 2))
    params[0].share_memory_()
    optimizer.state[params[0]]["exp_avg"].share_memory_()
    before = params[0].detach().clone()
    train(optimizer, gradients(params, 1))
    assert not torch.equal(params[0], before)


def test_an_error_in_one_launch_leaves_all_as_they_were():
    """The second launch fails to compute after the first has read."""
    params = [*parameters((5,)), *parameters((6,), dtype=torch.float64)]
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 2))
    launches = list(optimizer._launches)
    assert len(launches) == 2
    before = [t.clone() for t in (*params, *state_tensors(optimizer))]

    def fail(step):
        raise ValueError("no coefficients")

    launches[1].compute = fail
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="no coefficients"):
        optimizer.step()
    assert all(map(torch.equal, before, (*params, *state_tensors(optimizer))))
    optimizer.step()
    assert not torch.equal(before[0], params[0])


def test_a_model_that_holds_its_optimizer_is_collected(backend):
    model = torch.nn.Linear(3, 3)
    model.weight.model = model
    model.optimizer = FusedRAdam(model.parameters(), backend=backend)
    model(torch.ones(3)).sum().backward()
    model.optimizer.step()
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("steps", [0, 2])
def test_parameters_that_are_not_in_a_list_are_an_error(steps):
    params = parameters((3,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, steps))
    params[0].grad = torch.ones(3)
    optimizer.param_groups[0]["params"] = tuple(params)
    with pytest.raises(TypeError, match="params of group 0: tuple, expected a list"):
        optimizer.step()


def test_a_state_that_is_dropped_while_it_is_read_is_not_followed():
    params = parameters(*[(30, 20)] * 50)
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 2))
    for p in params:
        p.grad = torch.ones(30, 20)
    params[20].grad = torch.ones(20, 30).t()  # copied, by Python code

    class Drop(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.empty_like:
                optimizer.state.clear()
                gc.collect()
            return function(*args, **(kwargs or {}))

    with Drop():
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


def test_a_parameter_that_is_expanded_later_is_named_and_nothing_moves():
    [p] = parameters((4,))
    optimizer = train(FusedRAdam([p], backend="cpu"), gradients([p], 2))
    before = [t.clone() for t in state_tensors(optimizer)]
    p.data = torch.ones(1).expand(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is expanded"):
        optimizer.step()
    assert all(map(torch.equal, before, state_tensors(optimizer)))


def test_a_gradient_of_a_subclass_with_memory_of_its_own_is_stepped(backend):
    class Named(torch.Tensor):
        pass

    ours, plain = parameters((4,)), parameters((4,))
    one, other = FusedRAdam(ours, backend=backend), FusedRAdam(plain, backend="cpu")
    for [g] in gradients(ours, 7):
        ours[0].grad = g.as_subclass(Named)
        plain[0].grad = g
        one.step()
        other.step()
    assert torch.equal(ours[0], plain[0])


def test_a_gradient_that_keeps_its_memory_in_others_needs_eager():
    from torch.testing._internal.two_tensor import TwoTensor

    [p] = parameters((3,))
    wrapped = TwoTensor(torch.ones(3), torch.ones(3))
    p.grad = wrapped
    with pytest.raises(RuntimeError, match="has a TwoTensor, which keeps its memory in other"):
        FusedRAdam([p], backend="cpu").step()


def test_a_state_with_a_number_for_its_step(backend):
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend=backend)
    optimizer.state[p] = {"step": 3, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[p]["step"] = 7
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 8
