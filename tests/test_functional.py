"""radam_step_ takes lists of tensors and gives the bits of the optimizer."""

import pytest
import torch

from radam_fused import FusedRAdam, radam_step_

from .harness.helpers import OPTIONS, assert_same_bits, gradients, parameters, train


def state_lists(params, amsgrad):
    names = ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if amsgrad else ())
    lists = {name: [torch.zeros_like(p) for p in params] for name in names}
    return lists, [torch.zeros(()) for _ in params]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_function_gives_the_bits_of_the_optimizer(options, backend):
    params, others = parameters((5, 3), (0,), (40,)), parameters((5, 3), (0,), (40,))
    steps = gradients(params, 8)
    optimizer = train(FusedRAdam(others, backend=backend, **options), steps)
    options = dict(options)
    amsgrad = options.pop("amsgrad", False)
    lists, counts = state_lists(params, amsgrad)
    for grads in steps:
        radam_step_(
            [p.detach() for p in params],
            grads,
            lists["exp_avg"],
            lists["exp_avg_sq"],
            counts,
            lists.get("max_exp_avg_sq"),
            backend=backend,
            **options,
        )
    for i, (p, q) in enumerate(zip(params, others, strict=True)):
        assert_same_bits(p, q)
        assert_same_bits(counts[i], optimizer.state[q]["step"])
        for name, tensors in lists.items():
            assert_same_bits(tensors[i], optimizer.state[q][name], name)


def test_each_parameter_has_its_own_step_counter():
    params = [torch.ones(3), torch.ones(3)]
    lists, counts = state_lists(params, False)
    counts[1].fill_(9)
    radam_step_(params, [torch.ones(3)] * 2, *lists.values(), counts)
    assert [c.item() for c in counts] == [1, 10]
    assert not torch.equal(params[0], params[1])


def test_errors_name_the_argument_and_change_nothing():
    params = [torch.ones(3), torch.ones(2)]
    lists, counts = state_lists(params, False)
    with pytest.raises(ValueError, match="grads has 1 tensors, expected 2"):
        radam_step_(params, [torch.ones(3)], *lists.values(), counts)
    with pytest.raises(ValueError, match=r"gradient of parameter 1 has shape \(3,\), expected"):
        radam_step_(params, [torch.ones(3), torch.ones(3)], *lists.values(), counts)
    with pytest.raises(ValueError, match="Invalid epsilon value: -1"):
        radam_step_(params, params, *lists.values(), counts, eps=-1)
    with pytest.raises(RuntimeError, match="'cuda' is not available"):
        radam_step_(params, params, *lists.values(), counts, backend="cuda")
    assert all((p == 1).all() for p in params)
    assert not any(c.any() for c in counts)


@pytest.mark.parametrize("layout", ["channels_last", "gaps"])
def test_moments_in_another_memory_order_are_written_in_place(layout, backend):
    outcomes = []
    for name in (backend, "eager"):
        p = parameters((2, 3, 4, 5))[0].detach().to(memory_format=torch.channels_last)
        if layout == "gaps":
            memory = [torch.zeros(2, 3, 4, 10) for _ in range(2)]
            moments = [m[..., ::2] for m in memory]
        else:
            memory = [torch.zeros(120) for _ in range(2)]
            moments = [m.view(2, 3, 4, 5) for m in memory]
        counts = [torch.zeros(())]
        for _ in range(3):
            radam_step_([p], [torch.ones_like(p)], moments[:1], moments[1:], counts, backend=name)
        outcomes.append([p, *memory])
    for ours, expected in zip(*outcomes, strict=True):
        assert_same_bits(ours, expected)
        assert expected.any()
