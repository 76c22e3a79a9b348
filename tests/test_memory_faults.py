"""Parameters that share memory, and tensors whose memory was freed."""

import warnings

import pytest
import torch

from radam_fused import FusedRAdam, radam_step_

from .harness.helpers import assert_same_bits, copies, gradients, parameters, train


def stepped_once(params, steps=8, **options):
    """The parameters after steps in which each is listed once."""
    [*twins] = copies(params)
    train(FusedRAdam(twins, backend="cpu", **options), gradients(params, steps))
    return twins


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("flatten", [False, True])
def test_a_parameter_listed_twice_is_stepped_once(flatten, backend):
    first, second = params = parameters((33,), (4, 5))
    expected = stepped_once(params)
    listed = [first, second, first, first]
    optimizer = FusedRAdam(list(listed), backend=backend, flatten=flatten)
    for grads in gradients(params, 8):
        first.grad, second.grad = (grad.clone() for grad in grads)
        optimizer.step()
    for p, q in zip(params, expected, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert optimizer.state[first]["step"] == 8
    group = optimizer.param_groups[0]["params"]
    assert [id(p) for p in group] == [id(p) for p in listed]
    theirs = torch.optim.RAdam(list(listed))
    theirs.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(theirs.state_dict())


def test_tied_embeddings_in_two_lists_are_stepped_once(backend):
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    [expected] = stepped_once([embedding.weight], steps=3)
    with pytest.warns(UserWarning, match="duplicate parameters.*once per call") as caught:
        optimizer = FusedRAdam([*embedding.parameters(), *head.parameters()], backend=backend)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for [grad] in gradients([embedding.weight], 3):
        head.weight.grad = grad
        optimizer.step()
    assert_same_bits(embedding.weight.detach(), expected.detach())


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("where", ["same-group", "other-group", "replaced"])
def test_a_parameter_listed_again_later_is_stepped_once(where, started, backend):
    first, second = params = parameters((33,), (4, 5))
    expected = stepped_once(params, steps=8)
    optimizer = FusedRAdam([{"params": [p]} for p in params], backend=backend)
    optimizer.param_groups[0]["params"].append(parameters((3,), seed=9)[0])
    steps = iter(gradients(params, 8))

    def step():
        first.grad, second.grad = (grad.clone() for grad in next(steps))
        optimizer.step()

    for _ in range(4 if started else 0):
        step()
    if where == "same-group":
        optimizer.param_groups[0]["params"].append(first)
    elif where == "other-group":
        optimizer.param_groups[1]["params"].append(first)
    else:
        optimizer.param_groups[0]["params"][1] = first
    for _ in range(4 if started else 8):
        step()
    for p, q in zip(params, expected, strict=True):
        assert_same_bits(p.detach(), q.detach())


def overlapping(kind):
    base = torch.arange(64.0)
    views = {
        "same": (base[:8], base[:8]),
        "part": (base[:8], base[7:20]),
        "inside": (base[:40], base[10:12]),
        "transposed": (base[:16].view(4, 4), base[4:20].view(4, 4).t()),
        "other-dtype": (base[:8], base.view(torch.bfloat16)[8:20]),
        "gapped-in-dense": (base[:32], base[16:32:2]),
        "gapped": (base[::2], base[::3]),
        "columns": (base.view(8, 8)[:, :4], base.view(8, 8)[:, 3:]),
    }
    return [torch.nn.Parameter(view) for view in views[kind]]


KINDS = ["same", "part", "inside", "transposed", "other-dtype", "gapped-in-dense", "gapped"]


@pytest.mark.parametrize("kind", [*KINDS, "columns"])
@pytest.mark.parametrize("groups", [False, True])
def test_overlapping_parameters_raise_with_both_names(kind, groups, backend):
    first, second = overlapping(kind)
    named = [("first", first), ("second", second)]
    params = [{"params": [pair]} for pair in named] if groups else named
    optimizer = FusedRAdam(params, backend=backend)
    before = [first.detach().clone(), second.detach().clone()]
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    with pytest.raises(ValueError, match=r"overlaps .* in memory, expected separate") as caught:
        optimizer.step()
    assert "'first'" in str(caught.value)
    assert "'second'" in str(caught.value)
    assert_same_bits(first.detach(), before[0])
    assert_same_bits(second.detach(), before[1])
    assert not optimizer.state
    # Apart in time, they are allowed.
    first.grad = None
    optimizer.step()
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("flatten", [False, True])
def test_interleaved_parameters_do_not_overlap(flatten, backend):
    base = torch.arange(64.0).view(8, 8)
    params = [torch.nn.Parameter(v) for v in (base[:, ::2], base[:4, 1::2], base[4:, 1::2])]
    expected = stepped_once([p.detach().clone() for p in params], steps=3)
    train(FusedRAdam(params, backend=backend, flatten=flatten), gradients(params, 3))
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(p, q)


def test_an_overlap_that_comes_later_raises(backend):
    params = parameters((8,), (8,))
    optimizer = FusedRAdam([("first", params[0]), ("second", params[1])], backend=backend)
    train(optimizer, gradients(params, 3))
    params[1].data = params[0].data
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match="'second' overlaps parameter 'first'"):
        train(optimizer, gradients(params, 1))
    assert torch.equal(params[0], before)
    params[1].data = before.clone()
    train(optimizer, gradients(params, 1))


def test_moments_that_overlap_raise(backend):
    params = parameters((8,), (8,))
    optimizer = FusedRAdam([("first", params[0]), ("second", params[1])], backend=backend)
    train(optimizer, gradients(params, 3))
    optimizer.state[params[1]]["exp_avg"] = optimizer.state[params[0]]["exp_avg_sq"]
    with pytest.raises(ValueError, match="exp_avg of parameter 'second' overlaps exp_avg_sq of"):
        train(optimizer, gradients(params, 1))


def test_the_functional_form_rejects_overlaps():
    first, second = overlapping("part")
    states = [[torch.zeros_like(p) for p in (first, second)] for _ in range(2)]
    counters = [torch.zeros(()) for _ in range(2)]
    grads = [torch.ones_like(p) for p in (first, second)]
    with pytest.raises(ValueError, match="overlaps"):
        radam_step_([first, second], grads, *states, counters)
    assert all(step == 0 for step in counters)


def free(tensor):
    tensor.untyped_storage().resize_(0)


FREED = {
    "param": (lambda p, state: free(p), "parameter 'second'"),
    "grad": (lambda p, state: free(p.grad), "the gradient of parameter 'second'"),
    "exp_avg": (lambda p, state: free(state["exp_avg"]), "exp_avg of parameter 'second'"),
    "exp_avg_sq": (lambda p, state: free(state["exp_avg_sq"]), "exp_avg_sq of parameter 'second'"),
    "step": (lambda p, state: free(state["step"]), "step of parameter 'second'"),
}


# Before the first step there is no state.
FREED_CASES = [(name, 2) for name in FREED] + [("param", 0), ("grad", 0)]


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize(("tensor", "steps"), FREED_CASES)
def test_freed_storage_raises_with_its_name(tensor, steps, offset, backend):
    lose, name = FREED[tensor]
    first, second = params = [
        torch.nn.Parameter(torch.ones(4)),
        torch.nn.Parameter(torch.ones(offset + 9)[offset:]),
    ]
    optimizer = FusedRAdam([("first", first), ("second", second)], backend=backend)
    train(optimizer, gradients(params, steps))
    for p in params:
        p.grad = torch.ones(offset + p.numel())[offset:]
    state = optimizer.state[second] if steps else {}
    for key in ("step", "exp_avg", "exp_avg_sq") if steps else ():
        held = torch.zeros(offset + state[key].numel())[offset:].view(state[key].shape)
        state[key] = held.copy_(state[key])
    lose(second, state)
    before = first.detach().clone()
    with pytest.raises(ValueError, match=f"storage of {name} has been freed, expected memory"):
        optimizer.step()
    assert torch.equal(first, before)


def test_a_storage_that_comes_back_is_used(backend):
    """As FSDP frees and allocates its parameters."""
    [p], [q] = parameters((9,)), parameters((9,))
    ours, other = FusedRAdam([p], backend=backend), FusedRAdam([q], backend="cpu")
    for grads in gradients([p], 4):
        train(ours, [grads])
        train(other, [grads])
        held, size = p.detach().clone(), p.untyped_storage().nbytes()
        free(p)
        p.grad = None
        ours.step()
        p.untyped_storage().resize_(size)
        p.data.copy_(held)
    assert_same_bits(p.detach(), q.detach())


def test_no_warning_without_duplicates():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedRAdam(parameters((2,), (3,)))
