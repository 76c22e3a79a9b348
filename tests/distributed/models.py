"""A model with shards of every kind, its training, and plain twins to compare it with."""

import zlib

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import LayerNorm, Linear, Module, ModuleList, Parameter

from radam_fused import FusedRAdam

from ..harness.helpers import assert_same_bits

STEPS = 8  # RAdam rectifies from the sixth on
BATCH = 12


class Block(Module):
    def __init__(self):
        super().__init__()
        self.norm = LayerNorm(8)
        self.up = Linear(8, 12)
        self.down = Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(Module):
    """Among 3 or 4 processes some shards are uneven; among 4, one of `out` is empty."""

    def __init__(self):
        super().__init__()
        self.embed = Linear(5, 8)
        self.blocks = ModuleList(Block() for _ in range(2))
        self.out = Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def new_model():
    torch.manual_seed(0)
    return Model()


def backward(model, step, part=slice(None), scale=1.0):
    """Compute the gradients of a step; `part` is the part of the batch for this process."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 5, generator=generator)[part]
    y = torch.randn(BATCH, 3, generator=generator)[part]
    ((model(x) - y).square().mean() * scale).backward()


def part_of(rank, size):
    """The part of a batch for one of several processes."""
    return slice(rank * BATCH // size, (rank + 1) * BATCH // size)


def own_part():
    """The part of a batch for this process."""
    return part_of(dist.get_rank(), dist.get_world_size())


def whole(tensor):
    """A copy of the whole tensor. On DTensors, a collective operation."""
    if isinstance(tensor, DTensor):
        # Gloo has no int16.
        wide = tensor.to(torch.int32) if tensor.dtype == torch.int16 else tensor
        tensor = wide.full_tensor().to(tensor.dtype)
    return tensor.detach().clone()


def placed_gradient(param):
    """The whole gradient of a parameter, summed as for its shards."""
    grad = param.grad
    if isinstance(param, DTensor):
        grad = grad.redistribute(placements=param.placements)
    return whole(grad)


class Twin:
    """A plain copy of the parameters of a model, which is stepped with their whole gradients."""

    def __init__(self, model, **options):
        self.model = model
        self.params = {name: Parameter(whole(param)) for name, param in model.named_parameters()}
        self.optimizer = FusedRAdam(self.params.items(), backend="cpu", **options)

    def step(self):
        """Step with the gradients of the model, which has not been stepped yet."""
        for name, param in self.model.named_parameters():
            self.params[name].grad = None if param.grad is None else placed_gradient(param)
        self.optimizer.step()

    def check(self, optimizer=None):
        """Check that the model, and the state of its optimizer, have the same bits."""
        for name, param in self.model.named_parameters():
            twin = self.params[name]
            assert_same_bits(whole(param), twin.detach(), name)
            for key, value in self.optimizer.state[twin].items() if optimizer else ():
                assert_same_bits(whole(optimizer.state[param][key]), value, f"{key} of {name}")


def alone(**options):
    """The parameters of a model that one process has trained."""
    model = new_model()
    optimizer = FusedRAdam(model.parameters(), **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


def assert_trained_alike(model, **options):
    """Check that a model was trained as by one process, within rounding."""
    expected = alone(**options)
    for param, (name, value) in zip(model.parameters(), expected.items(), strict=True):
        torch.testing.assert_close(whole(param), value, rtol=1e-4, atol=1e-6, msg=name)


def follow(model, optimizer, give, **options):
    """Step with the gradients that `give(step)` computes, and check each step bit for bit."""
    assert list(optimizer.backends()) == ["cpu"]
    twin = Twin(model, **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        give(step)
        twin.step()
        optimizer.step()
        twin.check(optimizer)


def train(model, optimizer, part=slice(None), **options):
    """Train, and check each step bit for bit, and the result within rounding."""
    follow(model, optimizer, lambda step: backward(model, step, part), **options)
    assert_trained_alike(model, **options)


def give_gradients(model, step):
    """Give every parameter a gradient that does not depend on the layout of the model."""
    for name, param in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if isinstance(param, DTensor):
            replicated = [Replicate()] * param.device_mesh.ndim
            grad = DTensor.from_local(grad, param.device_mesh, replicated, run_check=False)
            grad = grad.redistribute(placements=param.placements)
        param.grad = grad
