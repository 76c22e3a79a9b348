"""Any memory order, alignment and kind of tensor; no memory outside of a tensor changes."""

import copy
import weakref

import pytest
import torch

from radam_fused import FusedRAdam, extension

from .harness.helpers import (
    assert_same_bits,
    assert_same_run,
    counted_copies,
    gradients,
    parameters,
    train,
)


def with_gaps(t):
    return torch.stack([t, t], dim=-1)[..., 0]


# Each returns the same values and shape in a different memory order.
LAYOUTS = {
    "contiguous": torch.clone,
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "gaps": with_gaps,
}


@pytest.mark.parametrize("grad_layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_memory_orders(param_layout, grad_layout, amsgrad):
    [values] = parameters((2, 3, 4, 5))
    params = [torch.nn.Parameter(param_layout(values.detach()))]
    plain = [torch.nn.Parameter(values.detach().clone())]
    optimizer = FusedRAdam(params, backend="cpu", amsgrad=amsgrad)
    expected = FusedRAdam(plain, backend="eager", amsgrad=amsgrad)
    for [g] in gradients(plain, 8):
        params[0].grad = grad_layout(g)
        plain[0].grad = g
        optimizer.step()
        expected.step()
    assert_same_run(optimizer, expected)


def test_usual_tensors_are_not_copied():
    params = parameters((3, 4), (), (0,), (2, 3, 4, 5), (70_000,))
    params += parameters((3,), dtype=torch.bfloat16) + parameters((4,), dtype=torch.complex64)
    params += [torch.nn.Parameter(LAYOUTS[k](params[3].detach())) for k in LAYOUTS if k != "gaps"]
    optimizer = FusedRAdam(params, backend="cpu")
    with counted_copies() as copied:
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert copied == []
    params.append(torch.nn.Parameter(with_gaps(torch.ones(3))))
    params[-1].grad = torch.ones(3)
    optimizer.add_param_group({"params": params[-1:]})
    with counted_copies() as copied:
        optimizer.step()
    assert [tensor is params[-1] for tensor in copied] == [True]


def test_only_a_gradient_in_another_order_is_copied():
    [p] = parameters((40, 30))
    optimizer = FusedRAdam([p], backend="cpu")
    for _ in range(3):
        p.grad = torch.randn(30, 40).t()
        with counted_copies() as copied:
            optimizer.step()
        assert [tensor is p.grad for tensor in copied] == [True]
    copies = []
    with counted_copies():
        connected = extension.dense_copy

        def watched(tensor, like):
            copy = connected(tensor, like)
            copies.append(weakref.ref(copy))
            return copy

        extension._C.connect(watched)
        optimizer.step()
    assert [copy() for copy in copies] == [None]


def test_loaded_moments_get_the_memory_order_of_their_parameter():
    plain = parameters((2, 3, 4, 5))
    steps = gradients(plain, 12)
    moved = [torch.nn.Parameter(LAYOUTS["channels_last"](plain[0].detach()))]
    one, other = FusedRAdam(plain), FusedRAdam(moved)
    train(one, steps[:6])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        moved[0].copy_(plain[0])
    moments = [other.state[moved[0]][key] for key in ("exp_avg", "exp_avg_sq")]
    with counted_copies() as copied:
        for grads in steps[6:]:
            train(one, [grads])
            moved[0].grad = LAYOUTS["channels_last"](grads[0])
            other.step()
    assert_same_run(one, other)
    assert copied == []
    assert all(
        other.state[moved[0]][key] is moment
        for key, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True)
    )
    assert other.state[moved[0]]["exp_avg"].stride() == moved[0].stride()


def test_the_layouts_of_these_tests_differ():
    values = torch.randn(2, 3, 4, 5)
    strides = {layout(values).stride() for layout in LAYOUTS.values()}
    assert len(strides) == len(LAYOUTS)
    assert all(torch.equal(layout(values), values) for layout in LAYOUTS.values())


def test_new_moments_have_the_memory_order_of_their_parameter():
    p = torch.nn.Parameter(LAYOUTS["channels_last"](torch.randn(2, 3, 4, 5)))
    optimizer = train(FusedRAdam([p]), [[torch.randn(2, 3, 4, 5)]])
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("size", [1, 7, 15, 16, 17, 33, 1023, 40_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_misaligned_views_and_their_neighbours(offset, size, dtype):
    guard = 12345.0
    buffers = {name: torch.full((size + 64,), guard, dtype=dtype) for name in ("param", "grad")}
    views = {name: buffer[offset : offset + size] for name, buffer in buffers.items()}
    values, grad = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
    views["param"].copy_(values)
    views["grad"].copy_(grad)
    p, q = torch.nn.Parameter(views["param"]), torch.nn.Parameter(values.clone())
    assert p.data_ptr() == views["param"].data_ptr()
    p.grad, q.grad = views["grad"], grad
    one, other = FusedRAdam([p], backend="cpu"), FusedRAdam([q], backend="eager")
    for _ in range(7):
        one.step()
        other.step()
    assert_same_run(one, other)
    assert torch.equal(views["grad"], grad)
    for buffer in buffers.values():
        outside = torch.cat([buffer[:offset], buffer[offset + size :]])
        assert (outside == guard).all()


def test_neighbouring_moments_are_untouched():
    params = parameters((3,), (5,), (70,))
    optimizer = train(FusedRAdam(params), gradients(params, 1))
    before = {p: optimizer.state[p]["exp_avg"].clone() for p in params}
    params[1].grad = torch.ones(5)
    params[0].grad = params[2].grad = None
    optimizer.step()
    for p, changed in zip(params, [False, True, False], strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], before[p]) != changed


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_mixed_with_real_ones(dtype, backend):
    mixed = [*parameters((3, 4), dtype=dtype), *parameters((5,))]
    as_torch = [torch.nn.Parameter(p.detach().clone()) for p in mixed]
    one = FusedRAdam(mixed, backend=backend)
    other = torch.optim.RAdam(as_torch, foreach=False)
    for _ in range(10):
        for p, q in zip(mixed, as_torch, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(mixed, as_torch, strict=True):
        torch.testing.assert_close(p, q)
    assert one.state[mixed[0]]["exp_avg_sq"].dtype == dtype


def test_lazily_conjugated_gradient():
    [p], [q] = parameters((6,), dtype=torch.complex64), parameters((6,), dtype=torch.complex64)
    one, other = FusedRAdam([p], backend="cpu"), FusedRAdam([q], backend="eager")
    for i in range(8):
        g = torch.randn(6, dtype=torch.complex64)
        p.grad = g.conj() if i % 2 else g.conj().resolve_conj()
        q.grad = g.conj().resolve_conj()
        one.step()
        other.step()
    assert_same_run(one, other)


def test_lazily_negated_gradient_of_a_scalar():
    """Autograd produces one for the imaginary part of a conjugate."""
    p, q = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(2.0))
    one, other = FusedRAdam([p], backend="cpu"), FusedRAdam([q], backend="eager")
    for negated in (False, True, True, False, True):
        g = torch.randn(())
        p.grad = torch._neg_view(g) if negated else -g
        q.grad = -g
        assert p.grad.is_neg() == negated
        one.step()
        other.step()
    assert_same_run(one, other)


def test_expanded_gradient(backend):
    [p] = parameters((4, 3))
    [q] = parameters((4, 3))
    one, other = FusedRAdam([p], backend=backend), FusedRAdam([q], backend="eager")
    for _ in range(7):
        g = torch.randn(3)
        p.grad, q.grad = g.expand(4, 3), g.repeat(4, 1)
        one.step()
        other.step()
    assert_same_run(one, other)


def test_gradients_are_never_written(backend):
    params = parameters((70,), (3, 4))
    params.append(torch.nn.Parameter(with_gaps(torch.randn(2, 3))))
    optimizer = FusedRAdam(params, maximize=True, weight_decay=0.1, backend=backend)
    for p in params:
        p.grad = torch.randn_like(p)
    grads = [p.grad.clone() for p in params]
    versions = [p.grad._version for p in params]
    for _ in range(7):
        optimizer.step()
    for p, grad, version in zip(params, grads, versions, strict=True):
        assert_same_bits(p.grad, grad)
        assert p.grad._version == version


def test_parameter_subclass_with_its_own_memory():
    class Named(torch.nn.Parameter):
        pass

    p = Named(torch.randn(5))
    optimizer = train(FusedRAdam([p], backend="cpu"), [[torch.randn(5)]] * 3)
    assert type(p) is Named
    assert optimizer.state[p]["step"] == 3


def test_unused_strides_do_not_move_moments():
    p = torch.nn.Parameter(torch.randn(5).as_strided((1, 5), (77, 1)))
    optimizer = FusedRAdam([p], backend="cpu")
    held = []
    for _ in range(3):
        p.grad = torch.ones(1, 5)
        optimizer.step()
        optimizer.__setstate__({})  # discards the plan
        held.append(optimizer.state[p]["exp_avg"])
    assert held[0] is held[1] is held[2]
    assert optimizer.state[p]["step"] == 3
