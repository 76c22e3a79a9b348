"""Changes that a user makes between two steps take effect in the next one, or are refused."""

from collections import UserDict, deque

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import assert_same_run, copies, gradients, launches_of, parameters, train
from .test_lifetimes import state_tensors


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
def test_the_next_step_uses_a_change(change, backend):
    """The run has the bits of one that makes a new plan at every step."""
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


def test_a_run_continues_with_parameters_and_state_copied_by_hand():
    """The copies continue with the bits of an uninterrupted run."""
    params = parameters((5,))
    steps = gradients(params, 12)
    straight = train(FusedRAdam(copies(params)), steps)
    first = train(FusedRAdam(params), steps[:5])
    second = FusedRAdam(copies(params))
    [p] = second.param_groups[0]["params"]
    second.state[p] = {k: v.clone() for k, v in first.state[params[0]].items()}
    assert_same_run(straight, train(second, steps[5:]))


def test_a_parameter_moved_to_shared_memory_is_updated():
    params = parameters((5,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 2))
    params[0].share_memory_()
    optimizer.state[params[0]]["exp_avg"].share_memory_()
    before = params[0].detach().clone()
    train(optimizer, gradients(params, 1))
    assert not torch.equal(params[0], before)


def test_an_error_in_one_launch_changes_nothing():
    """The second launch fails to compute after the first has read."""
    params = [*parameters((5,)), *parameters((6,), dtype=torch.float64)]
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, 2))
    launches = launches_of(optimizer)
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


class Items(UserDict):
    """A mapping that is no dict."""


CONTAINERS = {
    "tuple": lambda o: o.param_groups[0].update(params=tuple(o.param_groups[0]["params"])),
    "deque": lambda o: o.param_groups[0].update(params=deque(o.param_groups[0]["params"])),
    "parameter-list": lambda o: o.param_groups[0].update(
        params=torch.nn.ParameterList(o.param_groups[0]["params"])
    ),
    "state": lambda o: setattr(o, "state", Items(o.state)),
    "states": lambda o: o.state.update({p: Items(s) for p, s in o.state.items()}),
    "group": lambda o: o.param_groups.__setitem__(0, Items(o.param_groups[0])),
}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("change", CONTAINERS.values(), ids=CONTAINERS)
def test_any_iterable_of_parameters_and_any_mapping_works(change, steps, backend):
    params = parameters((3,), (4,))
    one, other = FusedRAdam(copies(params), backend=backend), FusedRAdam(params, backend="cpu")
    train(one, gradients(params, steps))
    train(other, gradients(params, steps))
    change(one)
    for grads in gradients(params, 7):
        for p, grad in zip(one.param_groups[0]["params"], grads, strict=True):
            p.grad = grad.clone()
        one.step()
        train(other, [grads])
    for p, q in zip(one.param_groups[0]["params"], params, strict=True):
        assert torch.equal(p, q)
    assert len(one.rectification()) == 1
    assert len(one.state_dict()["state"]) == 2


@pytest.mark.parametrize("steps", [0, 2])
def test_params_that_are_no_iterable_raise(steps):
    params = parameters((3,))
    optimizer = train(FusedRAdam(params, backend="cpu"), gradients(params, steps))
    params[0].grad = torch.ones(3)
    optimizer.param_groups[0]["params"] = 1
    with pytest.raises(TypeError, match="params of parameter group 0 is 1, expected a list"):
        optimizer.step()


def test_a_parameter_expanded_later_raises_and_changes_nothing():
    [p] = parameters((4,))
    optimizer = train(FusedRAdam([p], backend="cpu"), gradients([p], 2))
    before = [t.clone() for t in state_tensors(optimizer)]
    p.data = torch.ones(1).expand(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="parameter 0 of group 0 has elements that share memory"):
        optimizer.step()
    assert all(map(torch.equal, before, state_tensors(optimizer)))


def test_a_gradient_subclass_with_its_own_memory_works(backend):
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


def test_a_gradient_that_wraps_other_tensors_needs_eager():
    from torch.testing._internal.two_tensor import TwoTensor

    [p] = parameters((3,))
    wrapped = TwoTensor(torch.ones(3), torch.ones(3))
    p.grad = wrapped
    with pytest.raises(RuntimeError, match="has a TwoTensor, which keeps its memory in other"):
        FusedRAdam([p], backend="cpu").step()


def test_a_number_as_step_counter_works(backend):
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend=backend)
    optimizer.state[p] = {"step": 3, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[p]["step"] = 7
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 8


def test_the_default_device_does_not_matter(backend):
    [p], [q] = parameters((3,)), parameters((3,))
    ours, plain = FusedRAdam([p], backend=backend), FusedRAdam([q], backend="cpu")
    for optimizer in (ours, plain):
        train(optimizer, gradients([p], 2))
        optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] = 6
    steps = gradients([p], 2)
    with torch.device("meta"):
        train(ours, steps)
    train(plain, steps)
    assert_same_run(ours, plain)
