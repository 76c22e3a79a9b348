"""The inputs of PyTorch's own optimizer tests: options that must work or raise."""

import re

import pytest
import torch

from radam_fused import FusedAdam, FusedAdamW, FusedRAdam

pytest.importorskip("torch.testing._internal.common_optimizers")
from torch.testing._internal.common_optimizers import optim_db

OURS = {"RAdam": FusedRAdam, "Adam": FusedAdam, "AdamW": FusedAdamW}
FLAGS = [{}, {"foreach": True}, {"foreach": False}, {"differentiable": True}, {"fused": True}]
DTYPES = [torch.float64, torch.float32, torch.complex64]


def named(optimizers):
    return {o.optim_cls.__name__: o for o in optimizers if o.optim_cls.__name__ in OURS}


INFOS = named(optim_db)


def inputs(function):
    found = [(name, case) for name, info in INFOS.items() for case in function(info)]
    return pytest.mark.parametrize(("name", "case"), found, ids=lambda x: getattr(x, "desc", x))


@inputs(lambda info: info.optim_inputs_func(device="cpu"))
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_that_torch_takes(name, case, flags, dtype):
    given = {**case.kwargs, **flags}
    of_torch = {k: v for k, v in given.items() if k != "fused"}
    torch.manual_seed(0)
    weights = [torch.randn(4, 3, dtype=dtype), torch.randn(7, dtype=dtype)]
    results = []
    for cls, options in ((OURS[name], given), (INFOS[name].optim_cls, of_torch)):
        trained = "differentiable" not in flags  # no step may change a leaf under autograd
        params = [torch.nn.Parameter(weight.clone(), requires_grad=trained) for weight in weights]
        try:
            optimizer = cls(params, **options)
        except (ValueError, RuntimeError) as error:
            results.append(str(error))
            continue
        draw = torch.Generator().manual_seed(1)
        for _ in range(8):
            for p in params:
                p.grad = torch.randn(p.shape, dtype=dtype, generator=draw)
            optimizer.step()
        state = optimizer.state_dict()
        state["param_groups"][0].pop("fused", None)
        results.append((params, state))
    ours, theirs = results
    if isinstance(theirs, str):
        assert ours == theirs
        return
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-5, atol=2e-6)
    assert ours[1]["state"].keys() == theirs[1]["state"].keys()
    for index, entries in theirs[1]["state"].items():
        for key, value in entries.items():
            held = ours[1]["state"][index][key]
            torch.testing.assert_close(held, value, rtol=2e-5, atol=2e-6)
    assert ours[1]["param_groups"][0].keys() == theirs[1]["param_groups"][0].keys()


@inputs(lambda info: info.optim_error_inputs_func(device="cpu", dtype=torch.float32))
def test_options_that_torch_rejects(name, case):
    wrong = case.optimizer_error_input
    expected = (
        pytest.warns(case.error_type, match=case.error_regex)
        if issubclass(case.error_type, Warning)
        else pytest.raises(case.error_type, match=re.compile(case.error_regex))
    )
    with expected:
        OURS[name](wrong.params, **wrong.kwargs)


@pytest.mark.parametrize("cls", OURS.values())
def test_fused_raises_for_parameters_on_meta(cls):
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    optimizer = cls([p], fused=True)
    p.grad = torch.empty_like(p)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating"):
        optimizer.step()
