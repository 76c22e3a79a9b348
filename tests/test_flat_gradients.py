"""Gradients in flat buffers, and flat buffers that the caller owns."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from radam_fused import FlatGroup, FusedRAdam
from radam_fused.state import ROLES

from .harness.helpers import (
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    launches_of,
    parameters,
    train,
)
from .test_flat import SHAPES, model, run


class TestGradients:
    """Flat gradients."""

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
        [launch] = launches_of(flat)
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

    def test_gradients_set_to_none_are_used_outside_of_the_buffer(self, backend):
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
    def test_a_range_can_span_padding_but_no_other_parameter(self, hole, backend):
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

    def test_a_copy_keeps_flat_gradients(self):
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
    """Flat parameters and gradients that the caller owns."""

    def test_a_flat_shard_is_updated_as_one_parameter(self, backend):
        data, steps = torch.randn(1000), gradients(parameters((1000,)), 8)
        shard = torch.nn.Parameter(data.clone())
        optimizer = train(FusedRAdam([shard], backend=backend), steps)
        parts = [torch.nn.Parameter(part.clone()) for part in data.split([300, 700])]
        other = FusedRAdam(parts, backend="cpu")
        train(other, [list(g.split([300, 700])) for [g] in steps])
        assert_same_bits(shard.detach(), torch.cat([p.detach() for p in parts]))
        assert optimizer.state[shard]["exp_avg"].numel() == 1000

    def test_views_of_a_flat_parameter_and_gradient_are_updated_in_place(self, backend):
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

    def test_a_flat_buffer_is_updated_as_one_parameter(self, backend):
        params = parameters(*SHAPES)
        flat = FlatGroup(params, gradients=True)
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


@pytest.mark.parametrize("steps", [0, 3])
def test_distributed_checkpoints_have_the_state_of_flat_gradients(steps):
    """torch makes a state for a checkpoint only where no gradient is set."""

    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4)
        optimizer = FusedRAdam(model.parameters(), lr=0.1, flatten=True)
        optimizer.flat_buffers[0].flatten_gradients()
        return model, optimizer

    def work(model, optimizer, numbers):
        for number in numbers:
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + number)).square().sum().backward()
            optimizer.step()

    model, optimizer = build()
    work(model, optimizer, range(steps))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert saved["state"].keys() == {"weight", "bias"}
    assert {state["step"].item() for state in saved["state"].values()} == {steps}
    weights = copy.deepcopy(model.state_dict())
    work(model, optimizer, range(steps, steps + 5))
    other, resumed = build()
    other.load_state_dict(weights)
    set_optimizer_state_dict(other, resumed, saved)
    work(other, resumed, range(steps, steps + 5))
    assert_same_run(optimizer, resumed)
