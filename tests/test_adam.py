"""FusedAdam and FusedAdamW are torch.optim.Adam and AdamW, with the step of FusedRAdam."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from radam_fused import FusedAdam, FusedAdamW, FusedRAdam, settings

from .harness.helpers import (
    assert_same_run,
    assert_true,
    copies,
    gradients,
    parameters,
    train,
)

PAIRS = [(FusedAdam, torch.optim.Adam), (FusedAdamW, torch.optim.AdamW)]
OPTIONS = {
    "defaults": {},
    "lr": {"lr": 0.01},
    "decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.9)},
    "amsgrad-decay": {"weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.95)},
    "eps": {"eps": 1e-3},
    "betas": {"betas": (0.5, 0.8)},
    "no-momentum": {"betas": (0.0, 0.99)},
}
OURS = {
    "flatten",
    "backend",
    "moments",
    "master_weights",
    "stochastic_rounding",
    "seed",
    *settings.DEFAULTS,
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_follows_torch(name, ours, theirs, backend):
    options = OPTIONS[name]
    one, other = parameters((5, 3), (17,)), parameters((5, 3), (17,))
    steps = gradients(one, 30)
    optimizer = train(ours(one, backend=backend, **options), steps)
    rival = train(theirs(other, **options), steps)
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert set(optimizer.state[p]) == set(rival.state[q])
        for key, value in rival.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cls", [FusedAdam, FusedAdamW])
def test_agrees_with_the_truth(name, cls, dtype, backend):
    how = {"rectify": False, "eps_after_bias_correction": True}
    if cls is FusedAdamW:
        how |= {"decoupled_weight_decay": True, "weight_decay": 1e-2}

    def make(params, **options):
        return cls(params, backend=backend, **{k: v for k, v in options.items() if k in given})

    given = {"lr", *OPTIONS[name]}
    assert_true(make, {**how, **OPTIONS[name]}, dtype=dtype)


@pytest.mark.parametrize("mistake", [{"eps": 1e-2}, {"betas": (0.9, 0.99)}, {"maximize": True}])
def test_the_truth_finds_a_wrong_adam(mistake):
    def make(params, **_):
        return FusedAdam(params, lr=1e-2, backend="cpu", **mistake)

    with pytest.raises(AssertionError):
        assert_true(make, {"rectify": False, "eps_after_bias_correction": True})


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_signature_and_the_groups_are_those_of_torch(ours, theirs):
    expected = list(inspect.signature(theirs).parameters.values())
    given = [p for p in inspect.signature(ours).parameters.values() if p.name not in OURS]
    assert [(p.name, p.kind, p.default) for p in given] == [
        (p.name, p.kind, p.default) for p in expected
    ]
    one, other = ours(parameters((2,))).param_groups[0], theirs(parameters((2,))).param_groups[0]
    del one["params"], other["params"]
    assert one == other
    assert set(one) == set(other)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_checkpoints_load_in_both_directions(ours, theirs, options):
    def run(first, second):
        params = parameters((5, 3), (17,))
        steps = gradients(params, 16)
        optimizer = train(first(params, **options), steps[:8])
        resumed = second(params, **options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return train(resumed, steps[8:]).param_groups[0]["params"]

    expected = run(theirs, theirs)
    for pair in ((ours, theirs), (theirs, ours), (ours, ours)):
        for p, q in zip(run(*pair), expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_adamw_stays_decoupled_after_loading():
    [p] = parameters((3,))
    optimizer = FusedAdamW([p])
    optimizer.load_state_dict(torch.optim.Adam([p]).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("cls", [FusedAdam, FusedAdamW])
def test_copies_and_pickles_continue(cls, backend):
    params = parameters((3,), (5,))
    steps = gradients(params, 14)
    optimizer = train(cls(params, lr=0.1, amsgrad=True, backend=backend), steps[:7])
    for through in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        twin = through(optimizer)
        assert type(twin) is cls
        assert twin.backend == backend or backend not in ("cpu", "eager")
        train(twin, steps[7:])
        other = copy.deepcopy(optimizer)
        train(other, steps[7:])
        assert_same_run(twin, other)


@pytest.mark.parametrize("cls", [FusedAdam, FusedAdamW])
def test_the_step_is_that_of_fused_radam_without_rectification(cls, backend):
    params = parameters((1001,))
    how = {"rectify": False, "eps_after_bias_correction": True, "weight_decay": 0.1}
    if cls is FusedAdamW:
        how["decoupled_weight_decay"] = True
    one = train(cls(copies(params), weight_decay=0.1, backend=backend), gradients(params, 9))
    other = train(FusedRAdam(copies(params), backend="cpu", **how), gradients(params, 9))
    assert_same_run(one, other)


def test_tensor_betas():
    """torch.optim.Adam takes tensors of one element."""
    given = (torch.tensor(0.9), torch.tensor([[0.99]]))
    one, other, plain = (parameters((9,)) for _ in range(3))
    steps = gradients(one, 9)
    train(FusedAdam(one, betas=given), steps)
    train(torch.optim.Adam(other, betas=given), steps)
    train(FusedAdam(plain, betas=(float(given[0]), float(given[1]))), steps)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(one[0], plain[0])


@pytest.mark.parametrize("cls", [FusedAdam, FusedAdamW])
def test_messages_of_torch(cls):
    [p] = parameters((3,))
    beta = torch.tensor(0.9)
    for options in (
        {"lr": -1.0},
        {"eps": -1.0},
        {"betas": (1.0, 0.9)},
        {"weight_decay": -1.0},
        {"lr": torch.tensor(0.1), "foreach": True},
        {"betas": (beta, 0.9)},
        {"betas": (0.9, beta)},
        {"betas": (beta, beta), "foreach": True},
    ):
        with pytest.raises((ValueError, RuntimeError)) as ours:
            cls([p], **options)
        with pytest.raises((ValueError, RuntimeError)) as theirs:
            torch.optim.Adam([p], **options)
        assert str(ours.value).startswith(str(theirs.value))
    with pytest.raises(ValueError, match=r"^Tensor betas\[1\] must be 1-element"):
        cls([p], betas=(beta, torch.tensor([0.9, 0.99])))
    with pytest.raises(TypeError, match="unexpected keyword argument 'rectify'"):
        cls([p], rectify=True)
    p.grad = torch.eye(3).to_sparse()[0]
    name = cls.__name__.removeprefix("Fused")
    with pytest.raises(RuntimeError, match=f"{name} does not support sparse gradients"):
        cls([p]).step()


INIT_GROUP = [
    (FusedRAdam, torch.optim.RAdam, 5),
    (FusedAdam, torch.optim.Adam, 6),
    (FusedAdamW, torch.optim.AdamW, 6),
]


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(("ours", "theirs", "lists"), INIT_GROUP)
def test_init_group_is_that_of_torch(ours, theirs, lists, started):
    """Subclasses and tools call it."""
    results = []
    for cls in (ours, theirs):
        params = parameters((5,), (3, 2), (4,))
        params.append(torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)))
        options = {"amsgrad": True} if lists == 6 else {}
        optimizer = cls(params, **options)
        for p in (params[0], params[1], params[3]):
            p.grad = torch.ones_like(p)
        if started:
            optimizer.step()
        found = [[] for _ in range(lists)]
        has_complex = optimizer._init_group(optimizer.param_groups[0], *found)
        assert has_complex is True
        assert [id(p) for p in found[0]] == [id(params[i]) for i in (0, 1, 3)]
        assert found[-1][0] is optimizer.state[params[0]]["step"]
        results.append(found)
        assert len(optimizer.state) == 3
    for one, other in zip(*results, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape
            assert np.allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-6)
