"""Every stored format is saved and resumed bit for bit, and refused where it would be rounded."""

import copy
import io
import pickle
import warnings

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import assert_same_bits, assert_same_run, copies, gradients, parameters, train

FORMATS = {
    "bfloat16 moments": (torch.float32, {"moments": "bfloat16"}),
    "bfloat16 moments of float16": (torch.float16, {"moments": "bfloat16", "amsgrad": True}),
    "stochastic rounding": (torch.bfloat16, {"stochastic_rounding": True, "seed": 9}),
    "both": (torch.bfloat16, {"stochastic_rounding": True, "moments": "bfloat16"}),
    "split": (torch.bfloat16, {"master_weights": "split"}),
    "split, bfloat16": (torch.bfloat16, {"master_weights": "split", "moments": "bfloat16"}),
    "float32 of bfloat16": (torch.bfloat16, {"master_weights": "float32", "moments": "param"}),
    "float32 of float16": (torch.float16, {"master_weights": "float32", "amsgrad": True}),
}
SAVED = 6  # steps before the checkpoint


def through_torch(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state_dict):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        f"{number}.{key}": tensor
        for number, state in state_dict["state"].items()
        for key, tensor in state.items()
    }
    states = {number: {} for number in state_dict["state"]}
    for name, tensor in safetensors.load(safetensors.save(tensors)).items():
        number, key = name.split(".")
        states[int(number)][key] = tensor
    return {"state": states, "param_groups": copy.deepcopy(state_dict["param_groups"])}


def through_pickle(state_dict):
    return pickle.loads(pickle.dumps(state_dict))


def make(params, backend="cpu", **options):
    return FusedRAdam(params, backend=backend, lr=0.01, **options)


def quietly(optimizer, state_dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options differ
        optimizer.load_state_dict(state_dict)
    return optimizer


@pytest.mark.parametrize("save", [through_torch, through_safetensors, through_pickle])
@pytest.mark.parametrize("format", FORMATS)
def test_a_run_resumes_bit_for_bit(format, save, backend):
    dtype, options = FORMATS[format]
    params = parameters((40, 5), (7,), (), dtype=dtype)
    others, steps = copies(params), gradients(params, 12)
    straight = train(make(params, backend, **options), steps[:SAVED])
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    saved = save(straight.state_dict())
    # Options of the state_dict hold, those of the constructor do not.
    resumed = quietly(make(others, backend), saved)
    for p, q in zip(params, others, strict=True):
        for key, tensor in straight.state[p].items():
            assert_same_bits(resumed.state[q][key], tensor, key)
    train(straight, steps[SAVED:])
    train(resumed, steps[SAVED:])
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("format", FORMATS)
def test_copies_and_pickles_of_the_optimizer_step_alike(format):
    dtype, options = FORMATS[format]
    params = parameters((40, 5), (7,), dtype=dtype)
    steps = gradients(params, 10)
    straight = train(make(params, **options), steps[:5])
    for other in (copy.deepcopy(straight), pickle.loads(pickle.dumps(straight))):
        twin = copy.deepcopy(straight)
        assert_same_run(train(other, steps[5:]), train(twin, steps[5:]))


@pytest.mark.parametrize("format", ["split", "float32 of bfloat16"])
def test_a_checkpoint_without_masters_loads_exactly(format):
    """A state of another format has the same values: the masters begin with the parameters."""
    dtype, options = FORMATS[format]
    options = {"master_weights": options["master_weights"]}
    [p] = parameters((50,), dtype=dtype)
    saved = train(make([p]), gradients([p], 4)).state_dict()
    loaded = quietly(make(copies([p]), **options), copy.deepcopy(saved))
    [q] = loaded.param_groups[0]["params"]
    train(loaded, gradients([q], 1))
    wide = torch.nn.Parameter(p.detach().float())
    plain = quietly(make([wide]), copy.deepcopy(saved))
    train(plain, [[g.float() for g in grads] for grads in gradients([p], 1)])
    [master] = loaded.master_params()
    assert_same_bits(master, wide.detach())


def test_a_checkpoint_with_float32_masters_becomes_one_of_split_masters():
    [p] = parameters((300,), dtype=torch.bfloat16)
    steps = gradients([p], 12)
    run = train(make([p], master_weights="float32"), steps[:SAVED])
    [q] = copies([p])
    saved = copy.deepcopy(run.state_dict())
    del saved["param_groups"][0]["master_weights"]
    other = quietly(make([q], master_weights="split"), saved)
    train(run, steps[SAVED:])
    train(other, steps[SAVED:])
    assert "master_param" not in other.state[q]
    for one, two in zip(run.master_params(), other.master_params(), strict=True):
        assert_same_bits(one, two)


def test_a_bfloat16_state_of_torch_is_widened():
    """torch keeps the moments of a bfloat16 parameter in bfloat16."""
    [p] = parameters((30,), dtype=torch.bfloat16)
    saved = train(torch.optim.RAdam([p]), gradients([p], 7)).state_dict()
    for options in ({}, {"master_weights": "split"}):
        loaded = quietly(make(copies([p]), **options), saved)
        [q] = loaded.param_groups[0]["params"]
        assert_same_bits(loaded.state[q]["exp_avg_sq"], saved["state"][0]["exp_avg_sq"].float())
    kept = quietly(make(copies([p]), moments="bfloat16"), saved)
    [q] = kept.param_groups[0]["params"]
    assert_same_bits(kept.state[q]["exp_avg_sq"], saved["state"][0]["exp_avg_sq"])


REFUSED = {
    "float32 moments": (torch.float32, {}, {"moments": "bfloat16"}, "expected bfloat16"),
    "in another 16-bit dtype": (
        torch.float16,
        {"moments": "bfloat16"},
        {"moments": "param"},
        "expected float16",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_moments_that_would_be_rounded_raise(case):
    dtype, first, second, text = REFUSED[case]
    [p] = parameters((9,), dtype=dtype)
    saved = train(make([p], **first), gradients([p], 3)).state_dict()
    saved["param_groups"][0].pop("moments", None)
    loaded = make(copies([p]), **second)
    with pytest.raises(ValueError, match=f"{text}: a conversion would round"):
        loaded.load_state_dict(saved)
    assert loaded.state_dict()["state"] == {}


@pytest.mark.parametrize("case", REFUSED)
def test_moments_that_would_be_rounded_raise_in_a_step(case):
    dtype, first, second, text = REFUSED[case]
    [p] = parameters((9,), dtype=dtype)
    run = train(make([p], **first), gradients([p], 3))
    run.param_groups[0] |= second
    before = copy.deepcopy(run.state_dict()["state"])
    with pytest.raises(ValueError, match=text):
        run.step()
    for key, value in before[0].items():
        assert_same_bits(run.state[p][key], value, key)


@pytest.mark.parametrize("key", ["param_remainder", "master_param"])
def test_a_master_of_another_dtype_raises(key):
    [p] = parameters((9,), dtype=torch.bfloat16)
    format = {"param_remainder": "split", "master_param": "float32"}[key]
    saved = train(make([p], master_weights=format), gradients([p], 3)).state_dict()
    saved["state"][0][key] = saved["state"][0][key].double()
    with pytest.raises(ValueError, match=f"{key} of .* has dtype torch.float64, expected"):
        make(copies([p]), master_weights=format).load_state_dict(saved)


DTYPES = {
    "moments": ({"moments": "bfloat16"}, torch.float64, "does not support"),
    "complex moments": ({"moments": "bfloat16"}, torch.complex64, "does not support"),
    "split": ({"master_weights": "split"}, torch.float16, "master_weights='float32' supports"),
    "rounding": ({"stochastic_rounding": True}, torch.float16, "expected bfloat16"),
}


@pytest.mark.parametrize("case", DTYPES)
def test_a_dtype_that_a_format_excludes_raises_at_construction(case):
    options, dtype, text = DTYPES[case]
    with pytest.raises(ValueError, match=text):
        FusedRAdam(parameters((3,), dtype=dtype), **options)
    optimizer = FusedRAdam(parameters((3,)), **options)
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": parameters((3,), dtype=dtype)})
    assert len(optimizer.param_groups) == 1
    frozen = parameters((3,), dtype=dtype)[0].requires_grad_(False)
    FusedRAdam([*parameters((3,)), frozen], **options)


def test_options_that_exclude_each_other_raise():
    params = parameters((3,), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected one of them"):
        FusedRAdam(params, stochastic_rounding=True, master_weights="split")
    for options in ({"master_weights": "split"}, {"moments": "bfloat16"}):
        with pytest.raises(RuntimeError, match="`differentiable` does not support"):
            FusedRAdam(params, differentiable=True, **options)
    for options in ({"moments": "int8"}, {"seed": -1}, {"seed": 2**53}):
        with pytest.raises(ValueError, match="Invalid"):
            FusedRAdam(params, **options)
    for options in ({"moments": 3}, {"seed": 1.5}, {"seed": True}, {"master_weights": True}):
        with pytest.raises(TypeError, match="Invalid"):
            FusedRAdam(params, **options)
