"""torch.distributed.checkpoint: saved by two processes, loaded by one and three."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from radam_fused import PRESETS, FusedRAdam

from ..harness.helpers import assert_same_bits
from .layouts import shard
from .models import STEPS, give_gradients, new_model, whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

SAVED = 5  # steps before the checkpoint
OPTIMIZERS = {"ours": FusedRAdam, "torch": torch.optim.RAdam}


def build(name, own, dtype=torch.float32):
    """A sharded model with its optimizer; a plain one in a single process."""
    model = new_model().to(dtype)
    if dist.is_initialized():
        shard(model)
    own = PRESETS[own] if isinstance(own, str) else own
    return model, OPTIMIZERS[name](model.named_parameters(), lr=0.05, **own)


def advance(model, optimizer, steps):
    for step in steps:
        give_gradients(model, step)
        optimizer.step()


def options(flat):
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def parts_of(model, optimizer, flat):
    return {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer, options=options(flat)),
    }


def save(folder, flat, *case, asynchronous=False):
    """Train, save, and train on."""
    model, optimizer = build(*case)
    advance(model, optimizer, range(SAVED))
    parts = parts_of(model, optimizer, flat)
    if asynchronous:
        saving = dcp.async_save(parts, checkpoint_id=folder)
        advance(model, optimizer, range(SAVED, STEPS))
        saving.result()
    else:
        dcp.save(parts, checkpoint_id=folder)
        advance(model, optimizer, range(SAVED, STEPS))
    return picture(model, optimizer)


def resume(folder, flat, *case):
    """Load, and train on."""
    model, optimizer = build(*case)
    parts = parts_of(model, optimizer, flat)
    dcp.load(parts, checkpoint_id=folder)
    set_model_state_dict(model, parts["model"])
    set_optimizer_state_dict(model, optimizer, parts["optim"], options=options(flat))
    advance(model, optimizer, range(SAVED, STEPS))
    if isinstance(optimizer, FusedRAdam):
        assert list(optimizer.backends()) == ["cpu"]
    return picture(model, optimizer)


def picture(model, optimizer):
    """The whole parameters and states."""
    return {
        name: {"param": whole(param)}
        | {key: whole(value) for key, value in optimizer.state[param].items()}
        for name, param in model.named_parameters()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert found[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert_same_bits(found[name][key], value, f"{key} of {name}")


def assert_close(found, expected):
    for name, tensors in expected.items():
        for key, value in tensors.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-6)


CASES = {
    "default": ("ours", {}),
    "amsgrad": ("ours", {"amsgrad": True}),
    "bfloat16 with float32 moments": ("ours", {}, torch.bfloat16),
    "bfloat16 moments": ("ours", {"moments": "bfloat16", "seed": 2}),
    "stochastic rounding": (
        "ours",
        {"moments": "bfloat16", "stochastic_rounding": True},
        torch.bfloat16,
    ),
    "split masters": (
        "ours",
        {"master_weights": "split", "moments": "bfloat16"},
        torch.bfloat16,
    ),
    "float32 masters": ("ours", {"master_weights": "float32"}, torch.float16),
    **{f"the preset {name}": ("ours", name) for name in PRESETS},
}


@pytest.mark.parametrize("flat", [False, True], ids=["nested keys", "flattened keys"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_on_another_number_of_processes(case, flat, processes, tmp_path):
    arguments = str(tmp_path), flat, *CASES[case]
    expected, other = processes.run(2, save, *arguments)
    assert_same(other, expected)
    assert_same(resume(*arguments), expected)
    for found in processes.run(3, resume, *arguments):
        assert_same(found, expected)


@pytest.mark.parametrize("flat", [False, True], ids=["nested keys", "flattened keys"])
@pytest.mark.parametrize(("first", "second"), [("torch", "ours"), ("ours", "torch")])
def test_a_run_goes_on_with_the_other_optimizer(first, second, flat, processes, tmp_path):
    expected, _ = processes.run(2, save, str(tmp_path), flat, first, {})
    assert_close(resume(str(tmp_path), flat, second, {}), expected)
    for found in processes.run(3, resume, str(tmp_path), flat, second, {}):
        assert_close(found, expected)


def resume_with_own_options(folder, flat):
    """Load a checkpoint of torch's optimizer into a preset with options that torch lacks."""
    model, optimizer = build("ours", "official")
    own = {
        name: optimizer.param_groups[0][name]
        for name in ("rectify_threshold", "decay_skipped_steps")
    }
    parts = parts_of(model, optimizer, flat)
    with pytest.raises(CheckpointException, match=r"Missing key .*rectify_threshold"):
        dcp.load(parts, checkpoint_id=folder)
    dcp.load(parts, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_optimizer_state_dict(model, optimizer, parts["optim"], options=options(flat))
    assert {name: optimizer.param_groups[0][name] for name in own} == own
    twin, expected = build("torch", {})
    advance(twin, expected, range(SAVED))
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        state, theirs = optimizer.state[param], expected.state[other]
        assert state["step"].item() == theirs["step"].item() == SAVED
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(whole(state[key]), whole(theirs[key]))


@pytest.mark.parametrize("flat", [False, True], ids=["nested keys", "flattened keys"])
def test_options_that_a_checkpoint_lacks_are_kept(flat, processes, tmp_path):
    processes.run(2, save, str(tmp_path), flat, "torch", {})
    processes.run(3, resume_with_own_options, str(tmp_path), flat)


def save_asynchronously(*arguments):
    return save(*arguments, asynchronous=True)


def test_training_goes_on_while_a_checkpoint_is_written(processes, tmp_path):
    expected, _ = processes.run(2, save_asynchronously, str(tmp_path), False, "ours", {})
    for found in processes.run(3, resume, str(tmp_path), False, "ours", {}):
        assert_same(found, expected)


def test_a_fresh_state_does_not_pass_for_a_resumed_one(processes, tmp_path):
    expected, _ = processes.run(2, save, str(tmp_path), False, "ours", {})
    model, optimizer = build("ours", {})
    advance(model, optimizer, range(SAVED, STEPS))
    with pytest.raises(AssertionError):
        assert_close(picture(model, optimizer), expected)
