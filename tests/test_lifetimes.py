"""How long a step keeps tensors and memory alive."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.extension import _C

from .harness.helpers import copies, gradients, launches_of, parameters, train


def test_gradients_are_released_after_the_step():
    """zero_grad(set_to_none=True) must free their memory."""
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend="cpu")
    for _ in range(2):
        p.grad = torch.ones(3)
        watched = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert watched() is None


def test_tensors_dropped_during_a_step_keep_their_memory(monkeypatch):
    params = parameters((400_000,))
    ours, plain = FusedRAdam(copies(params), backend="cpu"), FusedRAdam(params, backend="cpu")
    first, second = gradients(params, 2)
    for optimizer in (ours, plain):
        train(optimizer, [first])
    [p] = ours.param_groups[0]["params"]
    [launch] = launches_of(ours)
    compute, dropped, poison = launch.compute, [], []

    def drop(step):
        compute(step)
        dropped.extend(weakref.ref(t) for t in (p.grad, ours.state[p]["exp_avg"]))
        p.grad = None
        del ours.state[p]["exp_avg"]
        poison.append(torch.full((400_000,), float("nan")))  # reuses the memory if it was freed

    monkeypatch.setattr(launch, "compute", drop)
    for p_, g in zip([p, params[0]], [second[0].clone(), second[0].clone()], strict=True):
        p_.grad = g
    for optimizer in (ours, plain):
        optimizer.step()
    assert poison
    assert torch.equal(p, params[0])
    assert [tensor() for tensor in dropped] == [None, None]  # released after the step


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
def test_the_optimizer_keeps_no_dropped_tensor_alive(drop, backend):
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
    """Also with gradients of another dtype, a new plan, and flat buffers."""
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
def test_every_tensor_has_its_own_storage(flatten):
    params = parameters(*[(4, 2)] * 20, (70_000,))
    optimizer = train(FusedRAdam(params, flatten=flatten, backend="cpu"), gradients(params, 2))
    tensors = [*params, *state_tensors(optimizer)]
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    state = optimizer.state[params[0]]
    assert len(pickle.dumps(state["exp_avg"])) < 2000
    assert copy.deepcopy(state["exp_avg"]).untyped_storage().nbytes() == 32
    state["exp_avg"].mul_(1.0)  # autograd forbids it for a view made by unbind()


def test_small_states_lie_side_by_side_up_to_a_megabyte():
    params = parameters(*[(64, 16)] * 300, (70_000,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 1))
    at = [optimizer.state[p]["exp_avg"].data_ptr() for p in params[:-1]]
    assert at[1:256] == [address + 4096 for address in at[:255]]
    assert at[256] != at[255] + 4096


def test_the_memory_of_slices_is_freed_with_the_last_slice():
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
def test_a_slice_beyond_its_buffer_raises(offset, shape, strides):
    with pytest.raises(ValueError, match="does not lie within its buffer"):
        _C.slice_of(torch.zeros(10), offset, shape, strides)


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


def test_a_state_dropped_while_it_is_read_is_safe():
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
