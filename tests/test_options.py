"""Everything agrees with the declarations of the options and of the state tensors."""

import inspect
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import radam_fused
from radam_fused import (
    FusedAdamW,
    FusedRAdam,
    option_sets,
    options,
    radam_step_,
    rectification,
    settings,
    state,
)
from radam_fused.extension import _C

from .harness.helpers import (
    assert_same_bits,
    copies,
    gradients,
    launches_of,
    parameters,
    train,
)


def test_the_extension_has_the_declared_options_and_tensors_in_their_order():
    assert _C.option_names == options.OPTION_NAMES
    assert _C.role_names == state.ROLES


def test_the_signature_has_every_option_with_its_default():
    signature = inspect.signature(FusedRAdam).parameters
    ours = {"params", "flatten", "backend"}
    assert {name: p.default for name, p in signature.items() if name not in ours} == (
        option_sets.RADAM.defaults | settings.DEFAULTS
    )


def test_every_setting_is_an_attribute_that_checks_its_values():
    for name in settings.DEFAULTS:
        assert isinstance(inspect.getattr_static(FusedRAdam, name), settings.Attribute)


def test_the_functional_form_takes_every_option_of_the_coefficients():
    signature = inspect.signature(radam_step_).parameters
    defaults = {
        name: p.default for name, p in signature.items() if name in option_sets.RADAM.defaults
    }
    assert defaults == {name: option_sets.RADAM.defaults[name] for name in options.COEFFICIENTS}


def test_the_coefficients_take_every_option_that_feeds_them():
    names = set(inspect.signature(rectification.coefficients).parameters)
    assert names == {"step", "grad_scale", "clip_coefficient", *options.COEFFICIENTS}


@pytest.mark.parametrize("documented", [FusedRAdam, radam_step_], ids=lambda d: d.__name__)
def test_every_option_is_documented(documented):
    text = inspect.getdoc(documented)
    assert "{options}" not in text
    assert "{settings}" not in text
    for name in inspect.signature(documented).parameters:
        if name != "params":
            assert f"    {name}: " in text, name
    assert max(map(len, documented.__doc__.splitlines())) <= 100


def test_the_functional_form_rejects_other_options():
    with pytest.raises(TypeError, match="unexpected keyword argument 'amsgrad'"):
        radam_step_([], [], [], [], [], amsgrad=True)


def test_the_state_has_the_declared_tensors():
    for amsgrad in (False, True):
        [p] = parameters((3,))
        optimizer = train(FusedRAdam([p], amsgrad=amsgrad), gradients([p], 1))
        expected = [f.name for f in state.STATE if f.option is None or amsgrad & (True in f.values)]
        assert list(optimizer.state[p]) == expected
    for format, key in (("split", "param_remainder"), ("float32", "master_param")):
        [p] = parameters((3,), dtype=torch.bfloat16)
        optimizer = train(FusedRAdam([p], master_weights=format), gradients([p], 1))
        assert list(optimizer.state[p]) == ["step", "exp_avg", "exp_avg_sq", key]


class TestGroupOptions:
    """The reader of the options of all groups."""

    def reader(self):
        return radam_fused.backends.new_numbers(option_sets.RADAM)

    def group(self, **given):
        return {
            "params": [],
            **option_sets.RADAM.group_defaults({**option_sets.RADAM.defaults, **given}),
        }

    def test_only_groups_that_changed_are_reported(self):
        groups, reader = [self.group(), self.group(lr=0.1)], self.reader()
        assert reader.read(groups) == [0, 1]
        assert reader.read(groups) == []
        groups[1]["eps"] = 1e-3
        assert reader.read(groups) == [1]
        groups[0]["amsgrad"] = True
        assert reader.read(groups) == [0]
        groups[0]["lr"] = 0.2  # changes at every step under a scheduler
        assert reader.read(groups) == []
        for wrong in (-1.0, float("nan"), float("inf"), torch.tensor(-1.0)):
            groups[0]["lr"] = wrong
            assert reader.read(groups) == [0]
        groups[0]["lr"] = 0.2
        assert reader.read(groups) == []
        groups[1]["betas"] = [0.9, 0.99]  # a list can change while it stays the same object
        assert reader.read(groups) == [1]
        groups[1]["betas"][1] = 0.98
        assert reader.read(groups) == [1]
        groups[1]["foreach"] = True
        assert reader.read(groups) == [1]
        groups[1]["of the user"] = 1
        assert reader.read(groups) == [1]
        groups[1]["of the user"] = 2
        assert reader.read(groups) == []
        groups.append(self.group())
        assert reader.read(groups) == [0, 1, 2]

    @pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "rectify_threshold"])
    def test_a_value_that_is_not_a_number_raises_until_it_is_replaced(self, name):
        groups, reader = [self.group()], self.reader()
        reader.read(groups)
        valid, groups[0][name] = groups[0].get(name), "1e-3"
        for _ in range(2):
            with pytest.raises(TypeError, match="real number"):
                reader.read(groups)
        groups[0][name] = 5.0 if valid is None else valid
        reader.read(groups)

    def test_a_group_without_an_option_of_torch_raises(self):
        groups = [self.group()]
        del groups[0]["eps"]
        with pytest.raises(KeyError, match="eps"):
            self.reader().read(groups)

    def test_a_tensor_learning_rate_is_released(self):
        import weakref

        lr = torch.tensor(0.1)
        groups, reader, watched = [self.group(lr=lr)], self.reader(), weakref.ref(lr)
        reader.read(groups)
        reader.release()
        groups[0]["lr"] = 0.1
        del lr
        assert watched() is None


def test_groups_with_the_same_options_share_coefficients_and_others_do_not():
    params = parameters(*[(5,)] * 6)
    rates = [0.1, 0.2, 0.1, 0.1, 0.2, 0.3]
    optimizer = FusedRAdam(
        [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], backend="cpu"
    )
    train(optimizer, gradients(params, 2))
    [launch] = launches_of(optimizer)
    coefficients = []
    compute = launch.compute

    def noted(step):
        compute(step)
        coefficients.append(len(launch.table.coefficients) // 32)

    launch.compute = noted
    train(optimizer, gradients(params, 1))
    assert coefficients == [3]


def test_the_warning_names_the_line_of_the_user():
    [p, q] = parameters((2,), (3,))
    for add in (
        lambda: FusedRAdam([p], betas=(0.9, 0.5)),
        lambda: FusedRAdam([p]).add_param_group({"params": [q], "betas": (0.9, 0.5)}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            add()
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("cls", [FusedRAdam, FusedAdamW])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "absolute_weight_decay": True},
        {"maximize": True, "amsgrad": True},
        {"degenerated_to_sgd": False, "betas": (0.9, 0.99)},
    ],
    ids=str,
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_learning_rate_of_0_moves_no_parameter(options, as_tensor, cls, backend):
    if cls is FusedAdamW:
        options = {k: v for k, v in options.items() if k in ("weight_decay", "maximize")}
    params = parameters((5,), (4, 3))
    before = copies(params)
    lr = torch.tensor(0.0) if as_tensor else 0.0
    optimizer = train(cls(params, lr=lr, backend=backend, **options), gradients(params, 8))
    for p, q in zip(params, before, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert optimizer.state[params[0]]["step"] == 8
    assert optimizer.state[params[0]]["exp_avg"].any()


MISSPELLED = {
    "weight_decy": "weight_decay",
    "weigth_decay": "weight_decay",
    "betaz": "betas",
    "epss": "eps",
    "amsgard": "amsgrad",
    "l": "lr",
}
OTHERS = ["name", "initial_lr", "max_lr", "base_momentum", "weight_dcy", "LR", "Betas2", 7]


@pytest.mark.parametrize("key", MISSPELLED)
@pytest.mark.parametrize("when", ["construction", "running"])
def test_a_key_one_edit_from_an_option_gives_a_warning_once(key, when):
    [p] = parameters((2,))
    message = (
        f"has '{key}', which is not an option and has no effect; did you mean '{MISSPELLED[key]}'"
    )
    if when == "construction":
        with pytest.warns(UserWarning, match=message) as caught:
            optimizer = FusedRAdam([{"params": [p], key: 0.1}])
    else:
        optimizer = train(FusedRAdam([p]), gradients([p], 1))
        optimizer.param_groups[0][key] = 0.1
        with pytest.warns(UserWarning, match=message) as caught:
            train(optimizer, gradients([p], 1))
    assert caught[0].filename.endswith((__file__, "helpers.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.param_groups[0]["eps"] = 1e-3
        train(optimizer, gradients([p], 2))


@pytest.mark.parametrize("key", OTHERS)
def test_other_keys_give_no_warning(key):
    [p] = parameters((2,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = FusedRAdam([{"params": [p], key: 0.1}])
        train(optimizer, gradients([p], 1))
    assert optimizer.param_groups[0][key] == 0.1


def test_the_text_of_an_optimizer_names_its_backend():
    optimizer = FusedRAdam(parameters((2,)), backend="cpu", flatten=True)
    assert repr(optimizer).startswith("FusedRAdam (\nParameter Group 0\n    betas: (0.9, 0.999)\n")
    assert repr(optimizer).endswith("    weight_decay: 0\nbackend: cpu\nflatten: True\n)")


NUMBERS = [1, True, np.float32(1e-3), np.array(1e-3), torch.tensor(1e-3), Fraction(1), Decimal(1)]


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_of_any_kind_are_learning_rates(value, backend):
    [p], [q] = parameters((4,)), parameters((4,))
    train(FusedRAdam([p], lr=value, backend=backend), gradients([p], 7))
    train(FusedRAdam([q], lr=float(value), backend=backend), gradients([q], 7))
    assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("betas", [[0.9, 0.99], np.array([0.9, 0.99]), (torch.tensor(0.9), 0.99)])
def test_any_sequence_of_two_numbers_is_a_pair_of_betas(betas, backend):
    [p], [q] = parameters((4,)), parameters((4,))
    train(FusedRAdam([p], betas=betas, backend=backend), gradients([p], 7))
    train(FusedRAdam([q], betas=tuple(map(float, betas)), backend=backend), gradients([q], 7))
    assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("value", [1, 0, np.bool_(True)])
def test_flags_can_be_numbers(value, backend):
    [p], [q] = parameters((4,)), parameters((4,))
    train(FusedRAdam([p], amsgrad=value, backend=backend), gradients([p], 7))
    train(FusedRAdam([q], amsgrad=bool(value), backend=backend), gradients([q], 7))
    assert_same_bits(p.detach(), q.detach())


def test_a_group_is_the_dict_that_was_given():
    """As in torch: libraries keep it to change its options."""
    optimizer = FusedRAdam(parameters((3,)))
    group = {"params": parameters((4,))}
    optimizer.add_param_group(group)
    assert optimizer.param_groups[1] is group
