"""Bad input raises an error that names the tensor, and changes nothing."""

import gc
import weakref

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import assert_same_bits, copies, gradients, parameters, train


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": torch.ones(2)},
        {"eps": -1e-8},
        {"betas": (1.0, 0.999)},
        {"betas": (-0.1, 0.999)},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9, -0.5)},
        {"weight_decay": -1},
        {"lr": float("nan")},
    ],
    ids=str,
)
def test_bad_hyper_parameters_raise_with_messages_that_begin_as_those_of_torch(options):
    with pytest.raises(ValueError, match=r"^(Invalid|Tensor)") as theirs:
        torch.optim.RAdam(parameters((2,)), **options)
    with pytest.raises(ValueError, match=r"^(Invalid|Tensor)") as ours:
        FusedRAdam(parameters((2,)), **options)
    assert str(ours.value).startswith(str(theirs.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rectify_threshold": 3.9}, "Invalid rectify_threshold value: 3.9, expected at least 4"),
        (
            {"rectify_threshold": 1.9, "exact_rectification": True},
            "Invalid rectify_threshold value: 1.9, expected at least 2",
        ),
        ({"absolute_weight_decay": True}, "requires decoupled_weight_decay=True"),
        ({"backend": "gpu"}, "Invalid backend: 'gpu', expected one of auto, cuda, triton, cpu"),
    ],
    ids=str,
)
def test_bad_values_of_our_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        FusedRAdam(parameters((2,)), **options)


def test_a_rejected_group_leaves_the_optimizer_unchanged():
    one, two = parameters((2,), (3,))
    optimizer = FusedRAdam([one])
    for group, error in (
        ({"params": [two], "lr": -1.0}, ValueError),
        ({"params": [two], "rectify_threshold": 0.0}, ValueError),
        ({"params": [two], "fused": True, "foreach": True}, RuntimeError),
    ):
        with pytest.raises(error):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [two]})


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex32], ids=str)
def test_an_unsupported_dtype_raises_at_the_first_gradient(dtype):
    weight = torch.zeros(2).to(dtype) if dtype != torch.complex32 else torch.zeros(2, dtype=dtype)
    p = torch.nn.Parameter(weight)
    optimizer = FusedRAdam([("w", p)])
    optimizer.step()
    p.grad = torch.zeros_like(p)
    with pytest.raises(TypeError, match=f"parameter 'w' has dtype {dtype}, expected one of"):
        optimizer.step()
    assert not optimizer.state


def test_a_sparse_parameter_raises_at_the_first_gradient():
    p = torch.nn.Parameter(torch.eye(2).to_sparse())
    optimizer = FusedRAdam([p])
    p.grad = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has layout torch\.sparse_coo"):
        optimizer.step()


def test_moments_of_two_dtypes_raise():
    [p] = parameters((4,), dtype=torch.bfloat16)
    optimizer = FusedRAdam([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["exp_avg_sq"] = optimizer.state[p]["exp_avg_sq"].bfloat16()
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"exp_avg_sq of .* has dtype torch.bfloat16, expected to"):
        optimizer.step()
    assert torch.equal(p, before)


def sparse(params):
    params[1].grad = torch.eye(3).to_sparse()


def wrong_shape(params):
    params[1].data = torch.zeros(5)


def wrong_state_shape(params, optimizer):
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(2)


def wrong_state_dtype(params, optimizer):
    optimizer.state[params[1]]["exp_avg_sq"] = torch.zeros(3, 3, dtype=torch.float64)


def missing_state(params, optimizer):
    del optimizer.state[params[1]]["exp_avg_sq"]


BAD = {
    "sparse": (
        lambda params, _: sparse(params),
        RuntimeError,
        "RAdam does not support sparse gradients: gradient of parameter 'b'",
    ),
    "shape": (
        lambda params, _: wrong_shape(params),
        ValueError,
        r"of parameter 'b' has shape \(3, 3\), expected \(5,\)",
    ),
    "state-shape": (
        wrong_state_shape,
        ValueError,
        r"exp_avg of parameter 'b' has shape \(2,\), expected \(3, 3\)",
    ),
    "state-dtype": (
        wrong_state_dtype,
        ValueError,
        "exp_avg_sq of parameter 'b' has dtype torch.float64, expected torch.float32",
    ),
    "missing": (missing_state, KeyError, "state of parameter 'b' has no 'exp_avg_sq'"),
}


# A new optimizer has no state that could be bad.
CASES = [(name, True) for name in BAD] + [("sparse", False), ("shape", False)]


@pytest.mark.parametrize(("bad", "started"), CASES)
def test_a_bad_tensor_is_named_and_nothing_changes(bad, started, backend):
    spoil, error, message = BAD[bad]
    params = parameters((4,), (3, 3))
    optimizer = FusedRAdam(
        [{"params": [("a", params[0])]}, {"params": [("b", params[1])]}], backend=backend
    )
    if started:
        train(optimizer, gradients(params, 3))
    for p in params:
        p.grad = torch.ones_like(p)
    spoil(params, optimizer)
    before = copies(params[:1])[0]
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(params[0], before)
    assert set(optimizer.state) == set(state)
    for p, entries in state.items():
        for key, value in entries.items():
            assert torch.equal(optimizer.state[p][key], value)


def put(container, key, value):
    """Replace an item, and return what puts it back."""
    old = container[key]
    container[key] = value

    def put_back():
        container[key] = old

    return put_back


def put_data(tensor, data):
    old, tensor.data = tensor.data, data
    return lambda: setattr(tensor, "data", old)


FIXABLE = {
    "option": lambda optimizer, p: put(optimizer.param_groups[0], "lr", "1e-3"),
    "late option": lambda optimizer, p: put(optimizer.param_groups[1], "betas", (0.9, 2.0)),
    "group": lambda optimizer, p: put(optimizer.param_groups, 1, None),
    "params": lambda optimizer, p: put(optimizer.param_groups[1], "params", [None]),
    "moment": lambda optimizer, p: put(optimizer.state[p], "exp_avg", torch.zeros(2)),
    "step": lambda optimizer, p: put(optimizer.state[p], "step", "7"),
    "state": lambda optimizer, p: put(optimizer.state, p, []),
    "parameter": lambda optimizer, p: put_data(p, torch.zeros(7)),
    "gradient": lambda optimizer, p: put_data(p.grad, torch.zeros(7)),
}


@pytest.mark.parametrize("fault", FIXABLE)
@pytest.mark.parametrize("flatten", [False, True])
def test_a_step_works_once_the_cause_of_an_error_is_gone(fault, flatten, backend):
    params = parameters((4,), (3, 3))
    others = copies(params)
    named = [{"params": [pair]} for pair in zip("ab", params, strict=True)]
    optimizer = FusedRAdam(named, backend=backend, flatten=flatten)
    undisturbed = FusedRAdam(others, backend=backend)
    for i, grads in enumerate(gradients(params, 8)):
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        if i == 4:
            put_back = FIXABLE[fault](optimizer, params[1])
            for _ in range(2):
                with pytest.raises((TypeError, ValueError)):
                    optimizer.step()
            put_back()
        optimizer.step()
        train(undisturbed, [grads])
    for p, q in zip(params, others, strict=True):
        assert_same_bits(p.detach(), q.detach())
        for key, value in undisturbed.state[q].items():
            assert_same_bits(optimizer.state[p][key], value, key)


@pytest.mark.parametrize(
    "late", [{"lr": torch.ones(2)}, {"rectify_threshold": 3.0}, {"absolute_weight_decay": True}]
)
def test_a_bad_option_in_one_group_changes_nothing_in_any_group(late, backend):
    params = parameters((4,), (3,))
    optimizer = FusedRAdam([{"params": [p]} for p in params], backend=backend)
    train(optimizer, gradients(params, 6))
    before = copies(params)
    optimizer.param_groups[1].update(late)
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert optimizer.state[params[0]]["step"] == 6


def test_a_threshold_for_the_exact_variance_raises_without_it(
    backend,
):
    [p] = parameters((4,))
    options = {"exact_rectification": True, "rectify_threshold": 2.0}
    optimizer = train(FusedRAdam([p], backend=backend, **options), gradients([p], 6))
    before = p.detach().clone()
    optimizer.param_groups[0]["exact_rectification"] = False
    with pytest.raises(ValueError, match=r"Invalid rectify_threshold value: 2\.0, expected at"):
        optimizer.step()
    assert torch.equal(p, before)


def test_an_expanded_parameter_raises_at_the_first_gradient(backend):
    p = torch.nn.Parameter(torch.ones(1).expand(3))
    optimizer = FusedRAdam([p], backend=backend)
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match="parameter 0 of group 0 has elements that share memory"):
        optimizer.step()


NO_COUNTS = [float("nan"), float("inf"), -1.0, -0.5]


@pytest.mark.parametrize("count", NO_COUNTS)
@pytest.mark.parametrize("started", [False, True])
def test_a_step_counter_without_a_count_raises(count, started, backend):
    params = parameters((4,), (3,))
    optimizer = FusedRAdam([("a", params[0]), ("b", params[1])], backend=backend)
    train(optimizer, gradients(params, 2))
    state = optimizer.state[params[1]]
    if started:
        state["step"].fill_(count)
    else:  # the plan sees a number
        state["step"] = count
    before = copies(params)
    with pytest.raises(ValueError, match=f"step of parameter 'b' is {count}, expected a count of"):
        train(optimizer, gradients(params, 1))
    assert all(map(torch.equal, params, before))
    assert optimizer.state[params[0]]["step"] == 2


def test_gradients_are_released_after_an_error():
    params = parameters((4,), (3, 3))
    optimizer = train(FusedRAdam(params), gradients(params, 2))
    params[0].grad, params[1].grad = torch.ones(4), torch.eye(3).to_sparse()
    watched = weakref.ref(params[0].grad)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    params[0].grad = None
    gc.collect()
    assert watched() is None
