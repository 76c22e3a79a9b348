"""FlatBuffers and flatten=True: the same run, with parameters and moments side by side."""

import copy
import io
import pickle

import pytest
import torch

from radam_fused import FlatBuffers, FusedRAdam
from radam_fused.state import ROLES

from .helpers import (
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
def test_flat_is_the_same_run(options, backend):
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


def test_one_buffer_a_device_and_dtype_aligned_and_printed():
    params = [*parameters((5, 3), (33,)), *parameters((7,), (2, 2), dtype=torch.bfloat16)]
    values = copies(params)
    flat = FlatBuffers([("a", params[0]), ("b", params[1]), ("c", params[2]), ("d", params[3])])
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


def test_a_module_keeps_its_values_orders_and_ties():
    net = model()
    net[4].weight = torch.nn.Parameter(net[4].weight.detach().clone())
    net.add_module("tied", torch.nn.Linear(7, 2))
    net.tied.weight = net[4].weight
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    strides = {name: p.stride() for name, p in net.named_parameters()}
    flat = FlatBuffers([*net.named_parameters(), ("again", net.tied.weight)])
    assert net.tied.weight is net[4].weight
    [buffer] = flat.buffers
    assert len(buffer.slots) == len(before)
    for name, p in net.named_parameters():
        assert_same_bits(p.detach(), before[name])
        assert p.stride() == strides[name]


def test_a_module_trains_as_without(backend):
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
def test_copies_have_buffers_of_their_own(how, backend):
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
    flat = FlatBuffers(params, gradients=True)
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


def test_a_parameter_that_gets_its_first_gradient_late(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    for t, grads in enumerate(gradients(params, 8)):
        grads = [grads[0], grads[1] if t > 3 else None]
        train(flat, [grads])
        train(plain, [grads])
    assert_same_run(flat, plain)


MOVES = {
    "re-pointed": lambda p: setattr(p, "data", p.detach().clone()),
    "half": lambda p: setattr(p, "data", p.detach().half()),
    "strided": lambda p: setattr(p, "data", p.detach().as_strided((len(p),), (0,))),
    "swapped": lambda p: setattr(p, "data", p.detach()[torch.arange(len(p)).flip(0)]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_moved_parameter_is_an_error_that_names_it(move, steps, backend):
    params = parameters((5,), (64,))
    named = [("first", params[0]), ("second", params[1])]
    optimizer = FusedRAdam(named, backend=backend, flatten=True)
    train(optimizer, gradients(params, steps))
    move(params[1])
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="parameter 'second' no longer lies in its flat buffer"):
        optimizer.step()
    for p, was in zip(params, before, strict=True):
        assert_same_bits(p.detach(), was)


def test_a_late_parameter_that_has_left_its_buffer_is_an_error():
    params = parameters((5,), (64,))
    optimizer = FusedRAdam([("first", params[0]), ("second", params[1])], flatten=True)
    params[0].grad = torch.ones(5)
    optimizer.step()
    params[1].data = params[1].detach().clone()
    params[1].grad = torch.ones(64)
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match="parameter 'second' no longer lies in its flat buffer"):
        optimizer.step()
    assert_same_bits(params[0].detach(), before)


def test_groups_that_move_keep_their_buffers_and_a_stranger_is_named(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam([{"params": [p]} for p in params], backend=backend, flatten=True)
    train(flat, gradients(params, 2))
    flat.param_groups.reverse()
    train(flat, [list(reversed(grads)) for grads in gradients(params, 2)])
    flat.param_groups.pop(0)
    train(flat, [grads[:1] for grads in gradients(params, 2)])
    flat.param_groups[0]["params"][0] = torch.nn.Parameter(torch.ones(5))
    with pytest.raises(ValueError, match="parameter 0 of group 0 lies in no flat buffer"):
        train(flat, [[torch.ones(5)]])


def test_a_moment_that_was_replaced_is_taken_over(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    for optimizer in (flat, plain):
        train(optimizer, gradients(params, 2))
        q = optimizer.param_groups[0]["params"][1]
        optimizer.state[q]["exp_avg"] = torch.full_like(q, 0.25)
        train(optimizer, gradients(params, 7))
    assert_same_run(flat, plain)


def test_what_cannot_be_flattened_is_refused_and_left_alone():
    base = torch.randn(6, 6)
    gaps = torch.nn.Parameter(base[:, :3])
    with pytest.raises(ValueError, match="parameter 0 does not fill a range of memory"):
        FlatBuffers([gaps])
    assert gaps.data_ptr() == base.data_ptr()
    one = torch.nn.Parameter(torch.randn(4))
    other = torch.nn.Parameter(one.detach())
    with pytest.raises(ValueError, match="shares memory with"):
        FlatBuffers([one, other])
    with pytest.raises(TypeError, match="no memory of its own"):
        FlatBuffers([torch.nn.Parameter(torch.empty(3, device="meta"))])
    optimizer = FusedRAdam(parameters((3,)), flatten=True)
    with pytest.raises(ValueError, match="does not fill a range"):
        optimizer.add_param_group({"params": [gaps]})
    assert len(optimizer.param_groups) == len(optimizer.flat_buffers) == 1


def test_groups_have_buffers_of_their_own(backend):
    params = parameters((5,), (64,), (7,))

    def make(params, **options):
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]
        return FusedRAdam(groups, **options)

    flat = train(make(copies(params), backend=backend, flatten=True), gradients(params, 8))
    plain = train(make(copies(params), backend="cpu"), gradients(params, 8))
    assert len(flat.flat_buffers) == 2
    assert_same_run(flat, plain)


class TestGradients:
    """Gradients in flat buffers, when asked for."""

    def pair(self, backend, shapes=SHAPES, **options):
        params = parameters(*shapes)
        flat = FusedRAdam(copies(params), backend=backend, flatten=True, **options)
        flat.flat_buffers[0].flatten_gradients()
        return params, flat, FusedRAdam(copies(params), backend="cpu", **options)

    def accumulate(self, optimizer, grads):
        for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            if p.grad is None:
                p.grad = g.clone()
            else:
                p.grad += g

    @pytest.mark.parametrize("eps", [1e-8, 0.0])
    def test_the_same_run(self, eps, backend):
        params, flat, plain = self.pair(backend, eps=eps, weight_decay=0.1)
        for grads in gradients(params, 8):
            for optimizer in (flat, plain):
                optimizer.zero_grad()
                self.accumulate(optimizer, grads)
                optimizer.step()
            assert_same_run(flat, plain)
        [buffer] = flat.flat_buffers[0].buffers
        for tensor in (buffer.data, buffer.grad):
            assert tensor.isfinite().all()

    def test_neighbours_without_padding_are_one_range(self):
        # Without padding between them: multiples of 128 bytes.
        params, flat, _ = self.pair("cpu", [(64, 16), (32,), (0,), (4, 8), (33,), (1025,)])
        self.accumulate(flat, gradients(params, 1)[0])
        flat.step()
        [launch] = flat._launches
        assert launch.read(flat.param_groups, flat.state)
        assert len(launch.table.segments) == 2 * 8 * (len(ROLES) + 4)
        launch.release()

    def test_autograd_accumulates_in_the_buffer(self, backend):
        nets = [model(), model()]
        flat = FusedRAdam(nets[0].parameters(), lr=0.1, backend=backend, flatten=True)
        flat.flat_buffers[0].flatten_gradients()
        plain = FusedRAdam(nets[1].parameters(), lr=0.1, backend="cpu")
        for net, optimizer in zip(nets, (flat, plain), strict=True):
            run(net, optimizer)
        assert_same_run(flat, plain)
        [buffer] = flat.flat_buffers[0].buffers
        for slot in buffer.slots:
            assert slot.param.grad.data_ptr() == buffer.grad[slot.offset :].data_ptr()

    def test_gradients_set_to_none_are_stepped_where_they_are(self, backend):
        params, flat, plain = self.pair(backend)
        for t, grads in enumerate(gradients(params, 8)):
            for optimizer in (flat, plain):
                for p in optimizer.param_groups[0]["params"]:
                    p.grad = None  # as module.zero_grad() does
                if t % 3 == 0:
                    optimizer.zero_grad()
                self.accumulate(optimizer, grads)
                optimizer.step()
            assert_same_run(flat, plain)

    @pytest.mark.parametrize("hole", ["none", "frozen", "never"])
    def test_padding_is_stepped_over_but_no_parameter(self, hole, backend):
        params, flat, plain = self.pair(backend, [(5,), (5,), (5,), (32,)], weight_decay=0.1)
        for t, grads in enumerate(gradients(params, 9)):
            for optimizer in (flat, plain):
                optimizer.zero_grad()
                middle = optimizer.param_groups[0]["params"][1]
                if hole == "frozen" and t == 3:
                    middle.requires_grad_(False)
                    optimizer.zero_grad()
                self.accumulate(optimizer, grads)
                if hole == "never" or t > 2:
                    middle.grad = None
                optimizer.step()
            assert_same_run(flat, plain)

    def test_a_frozen_parameter_has_no_flat_gradient(self):
        _, flat, _ = self.pair("cpu")
        p = flat.param_groups[0]["params"][0]
        p.requires_grad_(False)
        flat.zero_grad()
        assert p.grad is None

    def test_they_survive_a_copy(self):
        params, flat, _ = self.pair("cpu")
        other = copy.deepcopy(flat)
        assert other.flat_buffers[0].buffers[0].grad is not None
        for grads in gradients(params, 8):
            for optimizer in (flat, other):
                optimizer.zero_grad()
                self.accumulate(optimizer, grads)
                optimizer.step()
        assert_same_run(other, flat)


class TestForeignBuffers:
    """A caller's own flat parameters and gradients."""

    def test_a_flat_shard_is_stepped_directly(self, backend):
        data, steps = torch.randn(1000), gradients(parameters((1000,)), 8)
        shard = torch.nn.Parameter(data.clone())
        optimizer = train(FusedRAdam([shard], backend=backend), steps)
        parts = [torch.nn.Parameter(part.clone()) for part in data.split([300, 700])]
        other = FusedRAdam(parts, backend="cpu")
        train(other, [list(g.split([300, 700])) for [g] in steps])
        assert_same_bits(shard.detach(), torch.cat([p.detach() for p in parts]))
        assert optimizer.state[shard]["exp_avg"].numel() == 1000

    def test_views_of_a_flat_parameter_and_gradient_are_stepped_in_place(self, backend):
        flat, flat_grad = torch.randn(1000), torch.zeros(1000)
        before = flat.clone()
        sizes = [300, 1, 699]
        params = [torch.nn.Parameter(part) for part in flat.split(sizes)]
        optimizer = FusedRAdam(params, backend=backend)
        whole = torch.nn.Parameter(before)
        reference = FusedRAdam([whole], backend="cpu")
        for [g] in gradients([whole], 8):
            flat_grad.copy_(g)
            for p, part in zip(params, flat_grad.split(sizes), strict=True):
                p.grad = part
            optimizer.step()
            train(reference, [[g]])
        assert_same_bits(flat, whole.detach())

    def test_the_buffers_of_flatbuffers_as_one_parameter(self, backend):
        params = parameters(*SHAPES)
        flat = FlatBuffers(params, gradients=True)
        [buffer] = flat.buffers
        whole = torch.nn.Parameter(buffer.data)
        whole.grad = buffer.grad
        optimizer = FusedRAdam([whole], backend=backend)
        plain = FusedRAdam(copies(params), backend="cpu")
        for grads in gradients(params, 8):
            for p, g in zip(params, grads, strict=True):
                p.grad.copy_(g)
            optimizer.step()
            train(plain, [grads])
        for p, q in zip(params, plain.param_groups[0]["params"], strict=True):
            assert_same_bits(p.detach(), q.detach())
