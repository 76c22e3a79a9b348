"""A parameter without a gradient is not looked at, whatever it is."""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode

from radam_fused import FusedAdamW, FusedRAdam

from .harness.helpers import assert_same_bits, copies, gradients, parameters, train


def frozen(weight):
    return torch.nn.Parameter(weight, requires_grad=False)


def freed():
    p = frozen(torch.ones(5))
    p.untyped_storage().resize_(0)
    return p


FROZEN = {
    "uint8": lambda: frozen(torch.ones(3, dtype=torch.uint8)),
    "int8": lambda: frozen(torch.ones(3, dtype=torch.int8)),
    "bool": lambda: frozen(torch.ones(3, dtype=torch.bool)),
    "float8": lambda: frozen(torch.ones(3).to(torch.float8_e4m3fn)),
    "sparse": lambda: frozen(torch.eye(3).to_sparse()),
    "expanded": lambda: frozen(torch.ones(1).expand(4)),
    "meta": lambda: frozen(torch.ones(4, device="meta")),
    "freed": freed,
    "lazy": torch.nn.UninitializedParameter,
}


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
def test_a_frozen_parameter_is_not_looked_at(make, flatten, backend):
    trained, other = parameters((33,), (4, 5)), parameters((33,), (4, 5))
    optimizer = FusedRAdam(
        [trained[0], make(), trained[1]], backend=backend, flatten=flatten, weight_decay=0.1
    )
    optimizer.add_param_group({"params": [make()]})
    train(FusedRAdam(other, backend="cpu", weight_decay=0.1), gradients(other, 8))
    for grads in gradients(trained, 8):
        for p, grad in zip(trained, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    for p, q in zip(trained, other, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert len(optimizer.state) == 2
    assert [entry.step for entry in optimizer.rectification()] == [8, 0]
    state_dict = optimizer.state_dict()
    optimizer.load_state_dict(state_dict)
    optimizer.zero_grad()


def test_a_lazy_parameter_is_stepped_once_it_has_a_shape(backend):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.Linear(4, 2))
    optimizer = FusedRAdam(model.parameters(), backend=backend)
    for _ in range(2):
        model(torch.ones(3, 5)).sum().backward()
        optimizer.step()
    assert len(optimizer.state) == 4


@pytest.mark.parametrize("entry", [{"note": "mine"}, {"scale": torch.ones(2)}])
def test_an_entry_of_the_user_for_a_frozen_parameter_stays(entry, backend):
    trained, idle = parameters((33,), (4,))
    optimizer = FusedRAdam([trained, idle], backend=backend)
    optimizer.state[idle].update(entry)
    for grads in gradients([trained], 3):
        trained.grad = grads[0]
        optimizer.step()
    assert optimizer.state[idle] == entry
    assert len(optimizer.rectification()) == 1
    optimizer.load_state_dict(optimizer.state_dict())
    copy.deepcopy(optimizer)


FREEZES = {
    "freed": lambda p: p.untyped_storage().resize_(0),
    "emptied": lambda p: setattr(p, "data", torch.empty(0)),
    "cast": lambda p: setattr(p, "data", p.detach().half()),
    "quantized": lambda p: setattr(p, "data", p.detach().to(torch.int8)),
    "meta": lambda p: setattr(p, "data", torch.empty_like(p, device="cpu").expand(2, *p.shape)),
}


@pytest.mark.parametrize("change", ["amsgrad", "new-group"])
@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES)
def test_a_layer_that_was_trained_can_be_frozen_and_changed(freeze, change, backend):
    params, twins = parameters((33,), (4, 5)), parameters((33,), (4, 5))
    ours, plain = FusedRAdam(params, backend=backend), FusedRAdam(twins, backend="cpu")
    for optimizer in (ours, plain):
        train(optimizer, gradients(params, 3))
        optimizer.param_groups[0]["params"][1].grad = None
    params[1].requires_grad_(False)
    freeze(params[1])
    for optimizer, [p, _] in ((ours, params), (plain, twins)):
        if change == "amsgrad":
            optimizer.param_groups[0]["amsgrad"] = True
        else:
            optimizer.add_param_group({"params": parameters((7,), seed=5)})
        for [grad] in gradients([p], 6, seed=4):
            p.grad = grad.clone()
            optimizer.step()
    assert_same_bits(params[0].detach(), twins[0].detach())


@pytest.mark.parametrize("cls", [FusedRAdam, FusedAdamW])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"flatten": True}])
def test_steps_under_a_fake_tensor_mode(options, cls):
    """As memory planners take them; torch's optimizers pass as well."""
    with FakeTensorMode():
        model = torch.nn.Linear(4, 3)
        optimizer = cls(model.parameters(), **options)
        for _ in range(7):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert type(optimizer.state[model.weight]["exp_avg"]).__name__ == "FakeTensor"


def test_a_gradient_for_an_unsupported_parameter_changes_nothing(backend):
    trained = parameters((33,))
    odd = torch.nn.Parameter(torch.ones(1).expand(4))
    optimizer = FusedRAdam([("a", trained[0]), ("b", odd)], backend=backend)
    before = copies(trained)
    trained[0].grad, odd.grad = torch.ones(33), torch.ones(4)
    with pytest.raises(ValueError, match="parameter 'b' has elements that share memory"):
        optimizer.step()
    assert torch.equal(trained[0], before[0])
    assert not optimizer.state
