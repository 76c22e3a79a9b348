"""Drawn corruptions of a running optimizer: a clear error and no change, or the result of torch.

Each draw replaces one field of one tensor, or one option, by something else. Seeds are fixed.
"""

import random
import re
from functools import partial

import pytest
import torch

from .harness.running import Running, by_torch, freed, fused, with_gradient, with_gradient_on


def others(t):
    """Replacements of a tensor: of another shape, dtype, layout, device, memory or value."""
    values = t.detach()
    return {
        "shape": lambda: torch.zeros(*t.shape, 2),
        "no elements": lambda: torch.zeros(0),
        "fewer dimensions": lambda: values.flatten().clone(),
        "float64": lambda: values.double(),
        "bfloat16": lambda: values.bfloat16(),
        "int32": lambda: values.int(),
        "bool": lambda: values.bool(),
        "complex64": lambda: values.to(torch.complex64),
        "float8": lambda: values.to(torch.float8_e4m3fn),
        "sparse": lambda: values.to_sparse(),
        "meta": lambda: values.to("meta"),
        "expanded": lambda: torch.zeros(()).expand(t.shape),
        "gaps": lambda: values.repeat_interleave(2, -1)[..., ::2] if t.dim() else values.clone(),
        "transposed": lambda: values.t().contiguous().t() if t.dim() == 2 else values.clone(),
        "overlapping": lambda: torch.zeros(t.numel() + 2).as_strided(t.shape, (1,) * t.dim()),
        "freed": lambda: freed(values.clone()),
        "nan": lambda: torch.full_like(values, float("nan")),
        "inf": lambda: torch.full_like(values, float("inf")),
        "negative": lambda: -values.abs() - 1,
        "subclass": lambda: torch.nn.Parameter(values.clone()),
        "copy": lambda: values.clone(),
    }


OBJECTS = [None, "text", 1, -1.5, True, float("nan"), float("inf"), [], [0.1], (), {}, 1j, object()]


class Corruption:
    """One drawn corruption, which can be applied to several optimizers.

    Args:
        seed: The draw.

    Attributes:
        text: What was drawn.
        is_twice: Whether a parameter is listed twice, which this optimizer steps once.
    """

    def __init__(self, seed):
        draw = random.Random(seed)
        kinds = (self._data, self._gradient, self._state, self._option, self._list)
        [self._apply] = draw.choices(kinds, weights=(1, 2, 3, 2, 1))
        self._which = draw.choice("wb")
        self.flatten = draw.random() < 0.3
        self._seed = draw.random()
        self.text = ""
        self.is_twice = False

    def __call__(self, running):
        """Apply it."""
        self._apply(running.optimizer, running.names[self._which], random.Random(self._seed))

    def _say(self, *words):
        kind = self._apply.__name__.removeprefix("_")
        self.text = " ".join(map(str, (kind, "of", self._which, *words)))

    def _data(self, optimizer, param, draw):
        what = draw.choice([*others(param), "overlap", "frozen", "grown"])
        self._say(what)
        if what == "overlap":
            first, second = optimizer.param_groups[0]["params"]
            second.data = first.detach()[0]
        elif what == "frozen":
            param.requires_grad_(False)
        elif what == "grown":
            param.data = torch.cat([param.detach()] * 2)
        else:
            param.data = others(param)[what]()

    def _gradient(self, optimizer, param, draw):
        what = draw.choice([*others(param.grad), "none", "on another device", "shared"])
        self._say(what)
        if what == "none":
            param.grad = None
        elif what == "on another device":
            params = optimizer.param_groups[0]["params"]
            params[[p is param for p in params].index(True)] = with_gradient_on("meta", param)
        elif what == "shared":
            first, second = optimizer.param_groups[0]["params"]
            second.grad = first.grad[0]
        elif what == "sparse":
            param.grad = param.grad.to_sparse()
        else:
            param.grad.data = others(param.grad)[what]()

    def _state(self, optimizer, param, draw):
        state = optimizer.state[param]
        key = draw.choice(["step", "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
        old = state.get(key, state["exp_avg"])
        more = ["object", "object", "missing", "whole", "shared", "filled"]
        what, value = draw.choice([*others(old), *more]), draw.choice(OBJECTS)
        self._say(key, what, value)
        if what == "object":
            state[key] = value
        elif what == "missing":
            state.pop(key, None)
        elif what == "whole":
            optimizer.state[param] = draw.choice([None, "text", [], {}, {"step": 1}, 1])
        elif what == "shared":
            [other] = [p for p in optimizer.param_groups[0]["params"] if p is not param]
            lent = [old, state["exp_avg"], optimizer.state[other]["step"], param.data]
            state[key] = draw.choice(lent)
        elif what == "filled":
            old.fill_(draw.choice([float("nan"), -2.0, 0.0, 1e30]))
        else:
            state[key] = others(old)[what]()

    def _option(self, optimizer, _, draw):
        group = optimizer.param_groups[0]
        key = draw.choice([k for k in group if k not in ("params", "param_names")])
        tensors = [torch.tensor(0.01), torch.tensor([0.1, 0.2]), torch.tensor(-1.0)]
        value = draw.choice(
            [*OBJECTS, *tensors, 0.5, (0.9, 0.99), (0.5, 1.0), (0.9, "x"), KeyError]
        )
        self._say(key, value)
        if value is KeyError:
            del group[key]
        else:
            group[key] = value

    def _list(self, optimizer, param, draw):
        group = optimizer.param_groups[0]
        what = draw.choice(
            ["object", "item", "removed", "twice", "tuple", "late", "names", "group"]
        )
        value = draw.choice(OBJECTS)
        self._say(what, value)
        if what == "object":
            group["params"] = value
        elif what == "item":
            group["params"][0] = value
        elif what == "removed":
            del group["params"][0]
        elif what == "twice":
            group["params"].append(param)
            self.is_twice = True
        elif what == "tuple":
            group["params"] = tuple(group["params"])
        elif what == "late":
            group["params"].append(with_gradient(torch.ones(2)))
        elif what == "names":
            group["param_names"] = value
        else:
            optimizer.param_groups[0] = value


def mend(optimizer):
    """Replace what torch refuses and this optimizer takes: other dtypes of numbers."""
    [group] = optimizer.param_groups
    for p in {id(p): p for p in group["params"]}.values():
        if p.grad is not None and p.grad.dtype != p.dtype:
            p.grad.data = p.grad.to(p.dtype)
        step = optimizer.state[p].get("step", 0.0)
        optimizer.state[p]["step"] = torch.tensor(float(step))
    group["weight_decay"] = float(group["weight_decay"])
    group["capturable"] = False  # torch has none on the CPU


def result_of_torch(corruption):
    """The parameters after a step of torch with the corruption."""
    twin = Running(by_torch)
    corruption(twin)
    if corruption.is_twice:
        del twin.optimizer.param_groups[0]["params"][-1]
    error, _ = twin.execute("pass")
    if error is None:
        return twin.params
    twin = Running(by_torch)
    corruption(twin)
    mend(twin.optimizer)
    error, _ = twin.execute("pass")
    assert error is None, f"torch refuses: {error!r}"
    return twin.params


NAMES = re.compile(r"parameter '?[wb0-9]|parameter group \d|param_groups|the state")


def assert_clear_or_as_torch(corruption, make):
    running = Running(make)
    corruption(running)
    error, changed = running.execute("pass")
    if error is not None:
        assert NAMES.search(str(error)), f"no name: {error!r}"
        assert isinstance(error, TypeError | ValueError | KeyError | RuntimeError)
        assert not changed, f"{error!r} changed {changed}"
        return "error"
    for ours, theirs in zip(running.params, result_of_torch(corruption), strict=True):
        close = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
        torch.testing.assert_close(ours.detach(), theirs.detach(), **close)
    return "step"


def draws(seed, count):
    """Corruptions that torch does not refuse already at the assignment."""
    while count > 0:
        corruption = Corruption(seed)
        seed += 1
        try:
            corruption(Running(by_torch))
        except (RuntimeError, TypeError):
            continue
        # torch keeps an infinite second moment and moves the element no more; here it becomes NaN.
        if "exp_avg_sq inf" in corruption.text:
            continue
        yield seed - 1, corruption
        count -= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hundred", range(5))
def test_a_corruption_gives_a_clear_error_or_the_result_of_torch(hundred, backend):
    outcomes = []
    for seed, corruption in draws(10_000 * hundred, 100):
        try:
            make = partial(fused(backend), flatten=corruption.flatten)
            outcomes.append(assert_clear_or_as_torch(corruption, make))
        except BaseException as failure:
            failure.add_note(f"seed {seed}: {corruption.text}, flatten={corruption.flatten}")
            raise
    assert {*outcomes} == {"error", "step"}


@pytest.mark.filterwarnings("ignore")
def test_these_assertions_find_faults():
    """In torch itself: its errors name no tensor, and leave parameters updated in part."""
    faults = []
    for _, corruption in draws(0, 100):
        if "freed" in corruption.text:
            continue  # torch crashes
        try:
            assert_clear_or_as_torch(corruption, by_torch)
        except AssertionError as fault:
            faults.append(str(fault))
    assert any("no name" in fault for fault in faults)
    assert len(faults) > 10
