"""FlatGroup and flatten=True: the same results, with parameters and moments side by side."""

import copy
import io
import pickle

import pytest
import torch

from radam_fused import FlatGroup, FusedRAdam

from .harness.helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)

SHAPES = [(5, 3), (), (0,), (64, 16), (33,), (1025,)]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 7),
        torch.nn.Linear(7, 2),
    ).to(memory_format=torch.channels_last)


def run(net, optimizer, steps=8, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_flat_buffers_give_the_same_bits(options, backend):
    params = parameters(*SHAPES)
    flat = FusedRAdam(copies(params), backend=backend, flatten=True, **options)
    plain = FusedRAdam(copies(params), backend="cpu", **options)
    for t, grads in enumerate(gradients(params, 8)):
        grads = [None if i == t % 4 else g for i, g in enumerate(grads)]
        train(flat, [grads])
        train(plain, [grads])
        assert_same_run(flat, plain)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.complex64],
    ids=["float64", "bfloat16", "complex"],
)
def test_every_dtype(dtype, backend):
    params = parameters(*SHAPES, dtype=dtype)
    steps = gradients(params, 8)
    flat = train(FusedRAdam(copies(params), backend=backend, flatten=True, amsgrad=True), steps)
    plain = train(FusedRAdam(copies(params), backend="cpu", amsgrad=True), steps)
    assert_same_run(flat, plain)


def test_there_is_one_aligned_buffer_per_device_and_dtype():
    params = [*parameters((5, 3), (33,)), *parameters((7,), (2, 2), dtype=torch.bfloat16)]
    values = copies(params)
    flat = FlatGroup([("a", params[0]), ("b", params[1]), ("c", params[2]), ("d", params[3])])
    assert [buffer.data.dtype for buffer in flat.buffers] == [torch.float32, torch.bfloat16]
    for buffer in flat.buffers:
        assert buffer.data.is_contiguous()
        for slot in buffer.slots:
            assert slot.param.data_ptr() % 128 == 0
            part = buffer.data[slot.offset : slot.offset + slot.param.numel()]
            assert part.data_ptr() == slot.param.data_ptr()
    for p, value in zip(params, values, strict=True):
        assert_same_bits(p.detach(), value.detach())
    assert str(flat) == (
        "cpu float32, 96 elements\n  0..15  a (5, 3)\n  32..65  b (33,)\n"
        "cpu bfloat16, 128 elements\n  0..7  c (7,)\n  64..68  d (2, 2)"
    )


def test_a_module_keeps_values_memory_orders_and_ties():
    net = model()
    net[4].weight = torch.nn.Parameter(net[4].weight.detach().clone())
    net.add_module("tied", torch.nn.Linear(7, 2))
    net.tied.weight = net[4].weight
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    strides = {name: p.stride() for name, p in net.named_parameters()}
    flat = FlatGroup([*net.named_parameters(), ("again", net.tied.weight)])
    assert net.tied.weight is net[4].weight
    [buffer] = flat.buffers
    assert len(buffer.slots) == len(before)
    for name, p in net.named_parameters():
        assert_same_bits(p.detach(), before[name])
        assert p.stride() == strides[name]


def test_a_module_trains_with_the_same_bits(backend):
    nets = [model(), model()]
    flat = FusedRAdam(nets[0].parameters(), lr=0.1, backend=backend, flatten=True)
    plain = FusedRAdam(nets[1].parameters(), lr=0.1, backend="cpu")
    for net, optimizer in zip(nets, (flat, plain), strict=True):
        run(net, optimizer)
    assert_same_run(flat, plain)


def test_moments_lie_side_by_side(backend):
    params = parameters(*SHAPES)
    optimizer = train(FusedRAdam(params, backend=backend, flatten=True), gradients(params, 1))
    slots = optimizer.flat_buffers[0].buffers[0].slots
    for key in ("exp_avg", "exp_avg_sq"):
        parts = [optimizer.state[p][key] for p in params if p.numel() > 0]
        first = parts[0].data_ptr()
        for part, slot in zip(parts, (s for s in slots if s.param.numel() > 0), strict=True):
            assert part.shape == slot.param.shape
            assert part.data_ptr() % 128 == 0
            assert part.data_ptr() - first == slot.offset * part.element_size()


def test_module_checkpoints_keep_the_buffers(backend):
    net, other = model(), model()
    optimizer = FusedRAdam(net.parameters(), lr=0.1, backend=backend, flatten=True)
    run(net, optimizer)
    other.load_state_dict(net.state_dict())
    net.load_state_dict(other.state_dict())
    run(net, optimizer)
    optimizer.flat_buffers[0].check()


@pytest.mark.parametrize("to_flat", [False, True], ids=["from-flat", "to-flat"])
def test_optimizer_checkpoints_in_both_directions(to_flat, backend):
    params = parameters(*SHAPES)
    steps = gradients(params, 12)
    straight = train(FusedRAdam(copies(params), backend="cpu"), steps)
    first = FusedRAdam(copies(params), backend=backend, flatten=not to_flat)
    train(first, steps[:5])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = FusedRAdam(copies(first.param_groups[0]["params"]), backend=backend, flatten=to_flat)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second, steps[5:])
    assert_same_run(second, straight)
    for flat in second.flat_buffers:
        flat.check()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_their_own_buffers(how, backend):
    net = model()
    optimizer = FusedRAdam(net.parameters(), lr=0.1, backend=backend, flatten=True)
    run(net, optimizer)
    if how == "deepcopy":
        other_net, other = copy.deepcopy((net, optimizer))
    elif how == "pickle":
        other_net, other = pickle.loads(pickle.dumps((net, optimizer)))
    else:
        file = io.BytesIO()
        torch.save((net, optimizer), file)
        file.seek(0)
        other_net, other = torch.load(file, weights_only=False)
    ours = {buffer.data.data_ptr() for flat in optimizer.flat_buffers for buffer in flat.buffers}
    theirs = {buffer.data.data_ptr() for flat in other.flat_buffers for buffer in flat.buffers}
    assert theirs
    assert not ours & theirs
    run(net, optimizer, seed=4)
    run(other_net, other, seed=4)
    assert_same_run(other, optimizer)
    for p, q in zip(other_net.parameters(), other.param_groups[0]["params"], strict=True):
        assert p is q


def test_buffers_alone_can_be_copied():
    params = parameters((5,), (7,))
    flat = FlatGroup(params, gradients=True)
    other = copy.deepcopy(flat)
    assert str(other) == str(flat)
    assert other.buffers[0].grad is not None
    other.buffers[0].data.zero_()
    assert params[0].abs().sum() > 0


def test_a_frozen_parameter_keeps_its_step(backend):
    params = parameters((5,), (64,), (7,))
    optimizer = FusedRAdam(params, backend=backend, flatten=True)
    steps = gradients(params, 4)
    train(optimizer, steps[:2])
    before = params[1].detach().clone()
    train(optimizer, [[g[0], None, g[2]] for g in steps[2:]])
    assert_same_bits(params[1].detach(), before)
    assert [optimizer.state[p]["step"].item() for p in params] == [4, 2, 4]


def test_a_late_first_gradient_gives_the_same_bits(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    for t, grads in enumerate(gradients(params, 8)):
        grads = [grads[0], grads[1] if t > 3 else None]
        train(flat, [grads])
        train(plain, [grads])
    assert_same_run(flat, plain)


def test_every_flat_parameter_has_a_storage_of_its_own_size():
    """Savers take tensors with one storage for tied weights; pickle writes whole storages."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 2))
    optimizer = FusedRAdam(model.parameters(), flatten=True)
    optimizer.flat_buffers[0].flatten_gradients()
    model(torch.ones(3, 8)).sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [s[key] for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    storages = [tensor.untyped_storage() for tensor in tensors]
    assert len({storage.data_ptr() for storage in storages}) == len(tensors)
    for tensor, storage in zip(tensors, storages, strict=True):
        assert storage.nbytes() == tensor.numel() * tensor.element_size()
    whole, head = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), whole)
    torch.save(model[1].state_dict(), head)
    assert head.tell() < whole.tell() - 8 * 64 * 4


def test_parameters_that_cannot_move_stay_outside_of_the_buffers(backend):
    def make(**options):
        base = torch.arange(24.0).reshape(4, 6)
        shared = torch.arange(5.0).share_memory_()
        weights = [base[:, :3], torch.ones(5), shared, torch.ones(4, dtype=torch.uint8)]
        params = [torch.nn.Parameter(w, requires_grad=w.is_floating_point()) for w in weights]
        return FusedRAdam([*params, torch.nn.UninitializedParameter()], **options), params, shared

    flat, params, shared = make(backend=backend, flatten=True)
    [buffer] = flat.flat_buffers[0].buffers
    assert [slot.param is params[1] for slot in buffer.slots] == [True]
    plain, others, _ = make(backend="cpu")
    for ours, theirs in zip(params[:3], others[:3], strict=True):
        ours.grad, theirs.grad = torch.full_like(ours, 0.5), torch.full_like(theirs, 0.5)
    for optimizer in (flat, plain):
        for _ in range(7):
            optimizer.step()
    for ours, theirs in zip(params, others, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(shared, params[2])


def test_a_replaced_moment_moves_into_its_buffer(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    for optimizer in (flat, plain):
        train(optimizer, gradients(params, 2))
        q = optimizer.param_groups[0]["params"][1]
        optimizer.state[q]["exp_avg"] = torch.full_like(q, 0.25)
        train(optimizer, gradients(params, 7))
    assert_same_run(flat, plain)


def test_parameters_that_cannot_be_flattened_raise_and_stay_unchanged():
    base = torch.randn(6, 6)
    gaps = torch.nn.Parameter(base[:, :3])
    with pytest.raises(ValueError, match="parameter 0 is not dense"):
        FlatGroup([gaps])
    assert gaps.data_ptr() == base.data_ptr()
    one = torch.nn.Parameter(torch.randn(4))
    other = torch.nn.Parameter(one.detach())
    with pytest.raises(ValueError, match="overlaps parameter 0 in memory"):
        FlatGroup([one, other])
    with pytest.raises(TypeError, match="without its own memory"):
        FlatGroup([torch.nn.Parameter(torch.empty(3, device="meta"))])


def test_groups_have_their_own_buffers(backend):
    params = parameters((5,), (64,), (7,))

    def make(params, **options):
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]
        return FusedRAdam(groups, **options)

    flat = train(make(copies(params), backend=backend, flatten=True), gradients(params, 8))
    plain = train(make(copies(params), backend="cpu"), gradients(params, 8))
    assert len(flat.flat_buffers) == 2
    assert_same_run(flat, plain)


def test_the_texts_of_flat_buffers_name_their_parts():
    params = [("w", torch.ones(2, 3)), ("b", torch.ones(3)), ("d", torch.ones(1).double())]
    flat = FlatGroup(params)
    assert (
        repr([flat])
        == "[FlatGroup(3 parameters: cpu float32, 64 elements; cpu float64, 16 elements)]"
    )
    assert repr(flat.buffers[0]) == "FlatBuffer(2 parameters, cpu float32, 64 elements)"
    assert repr(flat.buffers[0].slots) == "[Slot(0..6  w (2, 3)), Slot(32..35  b (3,))]"
    half = torch.nn.Parameter(torch.ones(4)[::2])  # cannot move
    optimizer = FusedRAdam([half], flatten=True)
    assert (repr(optimizer.flat_buffers), str(optimizer.flat_buffers[0])) == (
        "[FlatGroup(0 parameters)]",
        "no parameters",
    )
