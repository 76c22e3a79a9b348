"""Checkpoints: state_dict in both directions, files, older formats, distributed checkpoints."""

import copy
import io
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from radam_fused import FusedRAdam

from .harness.helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_resumed_run_has_the_same_bits(options, backend):
    params = parameters((3, 4), (70,), ())
    steps = gradients(params, 14)
    straight = train(FusedRAdam(copies(params), backend=backend, **options), steps)
    first = train(FusedRAdam(params, backend=backend, **options), steps[:4])
    resumed = FusedRAdam(copies(params), backend=backend, **options)
    resumed.load_state_dict(through_a_file(first.state_dict()))
    assert_same_run(straight, train(resumed, steps[4:]))


@pytest.mark.parametrize("move", [("cpu", "eager"), ("eager", "cpu")], ids="->".join)
def test_a_checkpoint_moves_between_backends(move):
    params = parameters((300,), (4, 4))
    steps = gradients(params, 20)
    straight = train(FusedRAdam(copies(params), backend=move[0]), steps)
    first = train(FusedRAdam(params, backend=move[0]), steps[:9])
    resumed = FusedRAdam(copies(params), backend=move[1])
    resumed.load_state_dict(through_a_file(first.state_dict()))
    assert_same_run(straight, train(resumed, steps[9:]))


@pytest.mark.parametrize("there", [True, False], ids=["from-torch", "to-torch"])
@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_checkpoints_load_into_torch_radam_and_back(there, foreach):
    def torch_radam(params):
        return torch.optim.RAdam(params, lr=0.01, foreach=foreach)

    def ours(params):
        return FusedRAdam(params, lr=0.01)

    first, second = (torch_radam, ours) if there else (ours, torch_radam)
    params = parameters((3, 4), (7,))
    steps = gradients(params, 20)
    straight = copies(params)
    train(torch_radam(straight), steps)
    one = train(first(params), steps[:9])
    moved = copies(params)
    two = second(moved)
    two.load_state_dict(through_a_file(one.state_dict()))
    train(two, steps[9:])
    for p, q in zip(moved, straight, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert set(two.state[moved[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert two.state[moved[0]]["step"] == 20


def test_groups_have_the_keys_of_torch_and_changed_options():
    theirs = torch.optim.RAdam(parameters((2,))).state_dict()["param_groups"][0]
    assert FusedRAdam(parameters((2,))).state_dict()["param_groups"][0] == theirs
    # An option that is passed with its default value is still left out.
    explicit = FusedRAdam(parameters((2,)), amsgrad=False, rectify_threshold=5.0, backend="cpu")
    assert explicit.state_dict()["param_groups"][0] == theirs
    [p] = parameters((2,))
    grouped = FusedRAdam([{"params": [p], "amsgrad": False, "rectify": False}])
    assert set(grouped.param_groups[0]) - set(theirs) == {"rectify"}
    kept = FusedRAdam([{"params": [p], "amsgrad": False}], amsgrad=True)
    assert kept.param_groups[0]["amsgrad"] is False


def test_a_checkpoint_restores_our_options_and_keeps_those_that_it_lacks():
    ams = FusedRAdam(parameters((3,)), amsgrad=True, rectify_threshold=4.0)
    train(ams, gradients(ams.param_groups[0]["params"], 2))
    plain = FusedRAdam(parameters((3,)))
    with pytest.warns(UserWarning, match="options differ: group 0 had amsgrad=False") as caught:
        plain.load_state_dict(ams.state_dict())
    assert caught[0].filename == __file__
    assert "had rectify_threshold=5.0, the state_dict has 4.0, and 4.0 holds" in str(
        caught[0].message
    )
    assert plain.param_groups[0]["amsgrad"]
    assert plain.param_groups[0]["rectify_threshold"] == 4.0

    from_torch = torch.optim.RAdam(parameters((3,)))
    train(from_torch, gradients(from_torch.param_groups[0]["params"], 2))
    kept = FusedRAdam(parameters((3,)), amsgrad=True)
    with pytest.warns(UserWarning, match="amsgrad=True, the state_dict has False, and True holds"):
        kept.load_state_dict(from_torch.state_dict())
    [p] = kept.param_groups[0]["params"]
    train(kept, gradients([p], 1))
    assert kept.param_groups[0]["amsgrad"]
    assert (kept.state[p]["max_exp_avg_sq"] >= kept.state[p]["exp_avg_sq"]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_moments_get_the_dtype_of_the_options_if_that_is_exact(dtype):
    [p] = parameters((9,), dtype=dtype)
    saved = train(torch.optim.RAdam([p]), gradients([p], 3))  # moments in the parameter's dtype
    for moments, expected in ((None, torch.float32), ("param", dtype)):
        loaded = FusedRAdam(copies([p]), moments=moments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the state_dict has no moments
            loaded.load_state_dict(saved.state_dict())
        [q] = loaded.param_groups[0]["params"]
        assert loaded.state[q]["exp_avg"].dtype == expected
        assert torch.equal(
            loaded.state[q]["exp_avg_sq"].float(), saved.state[p]["exp_avg_sq"].float()
        )
        train(loaded, gradients([q], 1))


@pytest.mark.parametrize("moments", ["param", "bfloat16"])
def test_moments_are_not_rounded_by_loading(moments):
    [p] = parameters((9,), dtype=torch.bfloat16)
    saved = train(FusedRAdam([p]), gradients([p], 3)).state_dict()
    loaded = FusedRAdam(copies([p]), moments=moments)
    before = copy.deepcopy(loaded.state_dict())
    with pytest.raises(ValueError, match=r"exp_avg .* is float32 in the state_dict, expected bf"):
        loaded.load_state_dict(saved)
    assert loaded.state_dict() == before
    for state in saved["state"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].to(torch.bfloat16)  # as the message says
    with pytest.warns(UserWarning, match="moments="):
        loaded.load_state_dict(saved)
    [q] = loaded.param_groups[0]["params"]
    assert loaded.state[q]["exp_avg"].dtype == torch.bfloat16
    train(loaded, gradients([q], 1))


def test_an_old_checkpoint_loads():
    [p] = parameters((9,), dtype=torch.bfloat16)
    saved = train(FusedRAdam([p], moments="param"), gradients([p], 3)).state_dict()
    del saved["param_groups"][0]["moments"]
    saved["param_groups"][0]["moments_in_param_dtype"] = True
    loaded = FusedRAdam(copies([p]))
    with pytest.warns(UserWarning, match="moments=None, the state_dict has 'param'"):
        loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["moments"] == "param"
    assert "moments_in_param_dtype" not in loaded.param_groups[0]
    again = FusedRAdam(copies([p]), moments="param")
    again.load_state_dict(saved)  # without a warning: nothing differs
    group = {"params": copies([p]), "moments_in_param_dtype": True}
    assert FusedRAdam([group]).param_groups[0]["moments"] == "param"
    [q] = loaded.param_groups[0]["params"]
    assert loaded.state[q]["exp_avg"].dtype == torch.bfloat16
    train(loaded, gradients([q], 1))


def test_loaded_moments_are_cast_to_the_dtype_of_the_update():
    [p] = parameters((9,), dtype=torch.bfloat16)
    saved = train(torch.optim.RAdam([p]), gradients([p], 3))
    for dtype in (torch.float32, torch.float16, torch.float64):
        loaded = FusedRAdam([torch.nn.Parameter(p.detach().to(dtype))])
        loaded.load_state_dict(saved.state_dict())
        [q] = loaded.param_groups[0]["params"]
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert loaded.state[q]["exp_avg"].dtype == expected
        train(loaded, gradients([q], 1))


def test_load_state_dict_hooks_can_change_the_state_dict():
    [p] = parameters((4,), dtype=torch.bfloat16)
    saved = train(FusedRAdam([p]), gradients([p], 3)).state_dict()
    loaded = FusedRAdam(copies([p]))

    def doubled(_, state_dict):
        result = copy.deepcopy(state_dict)
        result["state"][0]["exp_avg"] *= 2
        return result

    seen = []
    loaded.register_load_state_dict_pre_hook(doubled)
    loaded.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[o.param_groups[0]["params"][0]]["exp_avg"].clone())
    )
    loaded.load_state_dict(saved)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], saved["state"][0]["exp_avg"] * 2)


def test_a_checkpoint_of_named_parameters_loads():
    model = torch.nn.Linear(3, 2)
    optimizer = FusedRAdam(model.named_parameters())
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    again = FusedRAdam(torch.nn.Linear(3, 2).named_parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == ["weight", "bias"]


def test_a_checkpoint_of_an_older_torch_loads():
    """Step counters are numbers, and groups lack later options."""
    params = parameters((4,))
    steps = gradients(params, 12)
    straight = train(FusedRAdam(copies(params)), steps)
    old = train(FusedRAdam(params), steps[:6]).state_dict()
    old["state"][0]["step"] = 6
    for key in ("maximize", "capturable", "foreach", "differentiable", "decoupled_weight_decay"):
        del old["param_groups"][0][key]
    resumed = FusedRAdam(copies(params))
    resumed.load_state_dict(old)
    [p] = resumed.param_groups[0]["params"]
    assert torch.is_tensor(resumed.state[p]["step"])
    assert_same_run(straight, train(resumed, steps[6:]))


def test_state_dict_has_the_form_of_torch():
    params = parameters((3,), (4,))
    ours = train(FusedRAdam(params), gradients(params, 2)).state_dict()
    theirs = train(torch.optim.RAdam(copies(params)), gradients(params, 2)).state_dict()
    assert list(ours["state"]) == list(theirs["state"])
    for i, entries in theirs["state"].items():
        assert list(ours["state"][i]) == list(entries)
        for key, value in entries.items():
            mine = ours["state"][i][key]
            assert (mine.dtype, mine.shape, mine.device) == (value.dtype, value.shape, value.device)


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "torch"])
def test_distributed_checkpoint_exchanges_state(theirs):
    """It creates the state with a step of lr 0 and zero gradients, which must change nothing."""

    def build(cls):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, cls(model.parameters(), lr=0.1)

    def work(model, optimizer, count):
        for i in range(count):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + i)).square().sum().backward()
            optimizer.step()

    model, optimizer = build(torch.optim.RAdam if theirs else FusedRAdam)
    work(model, optimizer, 6)
    saved = get_optimizer_state_dict(model, optimizer)
    fresh, resumed = build(FusedRAdam)
    before = copies(fresh.parameters())
    set_optimizer_state_dict(fresh, resumed, copy.deepcopy(saved))
    assert all(map(torch.equal, fresh.parameters(), before))
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(resumed.state[q]["exp_avg"], optimizer.state[p]["exp_avg"])
        assert resumed.state[q]["step"] == 6
    back, other = build(torch.optim.RAdam)
    set_optimizer_state_dict(back, other, get_optimizer_state_dict(fresh, resumed))
    assert other.state[next(back.parameters())]["step"] == 6


def test_the_constructor_decides_where_steps_are_counted():
    [p] = parameters((3,))
    state_dict = torch.optim.RAdam([p]).state_dict()
    state_dict["param_groups"][0]["capturable"] = True
    optimizer = FusedRAdam([p])
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["capturable"] is False
    capturable = FusedRAdam([p], capturable=True, fused=True)
    capturable.load_state_dict(torch.optim.RAdam([p]).state_dict())
    assert capturable.param_groups[0]["capturable"] is True
    assert capturable.param_groups[0]["fused"] is True


def test_loading_does_not_share_step_counters():
    [p] = parameters((3,))
    source = train(FusedRAdam([p]), gradients([p], 2))
    source.state[p]["step"].data = source.state[p]["step"].to(torch.float16)
    held = source.state[p]["step"]
    other = FusedRAdam(copies([p]))
    other.load_state_dict(source.state_dict())
    assert source.state[p]["step"] is held
    assert held.dtype == torch.float16
    train(other, gradients([p], 1))
    assert (held.item(), other.state[other.param_groups[0]["params"][0]]["step"].item()) == (2, 3)


def counting(read, reads):
    def counted(tensor):
        reads.append(tensor)
        return read(tensor)

    return counted


def test_step_counters_are_read_together(monkeypatch):
    """On a GPU, every read waits for the device."""
    params = parameters(*[(3,)] * 50)
    optimizer = train(FusedRAdam(params), gradients(params, 7))
    state_dict = optimizer.state_dict()
    reads = []
    for name in ("item", "tolist", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name), reads))
    assert optimizer.rectification()[0].step == 7
    assert len(reads) == 1
    reads.clear()
    optimizer.load_state_dict(state_dict)
    assert len(reads) == 1
    assert optimizer.rectification()[0].step == 7
    steps = [state["step"] for state in optimizer.state.values()]
    assert len({step.untyped_storage().data_ptr() for step in steps}) == 50


def test_a_counter_that_the_user_holds_goes_on_counting(backend):
    [p] = parameters((3,))
    optimizer = train(FusedRAdam([p], backend=backend), gradients([p], 2))
    held = optimizer.state[p]["step"]
    optimizer.param_groups[0]["amsgrad"] = True  # a new plan
    train(optimizer, gradients([p], 2))
    assert optimizer.state[p]["step"] is held
    assert held == 4


def test_a_load_that_fails_at_its_end_changes_nothing(backend):
    """The checks have passed; a hook of the user raises."""
    [p], [q] = parameters((5,)), parameters((5,))
    optimizer, other = FusedRAdam([p], lr=0.1, backend=backend), FusedRAdam([q], lr=0.2)
    train(optimizer, gradients([p], 4))
    train(other, gradients([q], 9))
    group, state = optimizer.param_groups[0], optimizer.state[p]
    held = {key: value.clone() for key, value in state.items()}

    def fail(_):
        raise RuntimeError("too late")

    handle = optimizer.register_load_state_dict_post_hook(fail)
    with pytest.raises(RuntimeError, match="too late"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0] is group
    assert group["lr"] == 0.1
    assert optimizer.state[p] is state
    for key, value in held.items():
        assert_same_bits(state[key], value, key)
    handle.remove()
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.state[p]["step"] == 9
    train(optimizer, gradients([p], 1))
