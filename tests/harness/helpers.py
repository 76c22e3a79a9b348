"""Helpers that run optimizers and compare their results."""

import contextlib

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Shard

from radam_fused import FusedRAdam, extension

from .truth import REAL, Truth

# The options of the update, alone and combined. Every backend is tested with each set.
OPTIONS = {
    "defaults": {},
    "l2": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "absolute": {
        "weight_decay": 0.01,
        "decoupled_weight_decay": True,
        "absolute_weight_decay": True,
    },
    "maximize": {"maximize": True},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.9)},
    "amsgrad-l2-maximize": {
        "amsgrad": True,
        "betas": (0.8, 0.9),
        "weight_decay": 0.1,
        "maximize": True,
    },
    "skip": {"degenerated_to_sgd": False},
    "skip-undecayed": {
        "degenerated_to_sgd": False,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "decay_skipped_steps": False,
    },
    "threshold-4": {"rectify_threshold": 4.0},
    "exact": {"exact_rectification": True},
    "exact-threshold-2": {"exact_rectification": True, "rectify_threshold": 2.0},
    "late-eps": {"eps": 1e-3, "eps_after_bias_correction": True},
    "adam": {"rectify": False, "eps_after_bias_correction": True},
    "adamw": {
        "rectify": False,
        "eps_after_bias_correction": True,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
    },
    "short-memory": {"betas": (0.5, 0.8), "lr": 0.1},
    "no-momentum": {"betas": (0.0, 0.95)},
}

# Sets of options that torch.optim.RAdam has as well.
TORCH_OPTIONS = {
    name: options
    for name, options in OPTIONS.items()
    if set(options) <= {"weight_decay", "decoupled_weight_decay", "maximize", "betas", "eps", "lr"}
}

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def same_bits(a, b):
    """Whether two tensors hold the same bits; all NaNs are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_complex():
        return same_bits(torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj()))
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.dtype.itemsize]
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return bool(((a.view(integers) == b.view(integers)) | (a.isnan() & b.isnan())).all())


def assert_same_bits(a, b, what=""):
    if not same_bits(a, b):
        different = (a != b) & ~(a.isnan() & b.isnan())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {a.numel()} differ, first "
            f"{a[different][:3].tolist()} and {b[different][:3].tolist()}"
        )


def assert_same_run(one, other):
    """Assert that two optimizers have the same bits in parameters, moments and step counters."""
    for group, other_group in zip(one.param_groups, other.param_groups, strict=True):
        for i, (p, q) in enumerate(zip(group["params"], other_group["params"], strict=True)):
            assert_same_bits(p, q, f"parameter {i}")
            assert set(one.state[p]) == set(other.state[q])
            for key, value in one.state[p].items():
                assert_same_bits(value, other.state[q][key], f"{key} of parameter {i}")


def parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype))
        for shape in shapes
    ]


def copies(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def gradients(params, steps, seed=1, scale=1.0):
    """Seeded gradients: one list per step."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(p.shape, dtype=torch.float64, generator=generator).mul(scale).to(p.dtype)
            for p in params
        ]
        for _ in range(steps)
    ]


def train(optimizer, steps):
    """Step an optimizer with the given gradients, one list per step."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for grads in steps:
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
    return optimizer


@contextlib.contextmanager
def counted_copies():
    """Record the tensors that steps copy temporarily."""
    copies, copy = [], extension.dense_copy

    def counted(tensor, like):
        copies.append(tensor)
        return copy(tensor, like)

    extension._C.connect(counted)
    try:
        yield copies
    finally:
        extension._C.connect(copy)


def launches_of(optimizer):
    """The launches of an optimizer, which nothing public shows."""
    return list(optimizer._plan.launches)


def fused(params, **options):
    return FusedRAdam(params, **options)


def true_errors(make, options, dtype=torch.float32, steps=12, size=257, lr=1e-2):
    """Largest errors of parameters and moments against the truth, in units of rounding.

    The unit of a moment is the rounding of the largest gradient (or its square); the unit of the
    parameter is the rounding of the largest parameter.
    """
    options = {"lr": lr, **options}
    [param] = parameters((size,), dtype=dtype)
    truth = Truth(param.detach().double().numpy())
    optimizer = make([param], **options)
    grads = gradients([param], steps)
    for [grad] in grads:
        param.grad = grad.clone()
        optimizer.step()
        truth.step(grad.double().numpy(), **options)
    state = optimizer.state[param]
    epsilon = REAL(torch.finfo(dtype).eps)
    largest = max(float(g.abs().max()) for [g] in grads)
    largest += options.get("weight_decay", 0) * float(np.abs(truth.p).max())

    def error(tensor, true, unit):
        return float(np.abs(tensor.detach().double().numpy().astype(REAL) - true).max() / unit)

    return {
        "param": error(param, truth.p, epsilon * float(np.abs(truth.p).max())),
        "exp_avg": error(state["exp_avg"], truth.m, epsilon * largest),
        "exp_avg_sq": error(state["exp_avg_sq"], truth.v, epsilon * largest**2),
        "step": abs(float(state["step"]) - truth.t),
    }


# The worst case: twelve steps of three roundings each, all in the same direction.
TRUE_BOUND = 36.0


def assert_true(make, options, **how):
    """Assert that an optimizer agrees with the paper within the rounding of its arithmetic."""
    for what, error in true_errors(make, options, **how).items():
        assert error <= (0 if what == "step" else TRUE_BOUND), f"{what}: {error} roundings"


def sharded(local, mesh, placement=None):
    """A DTensor with a local tensor; by default one that is sharded by its first dimension."""
    return DTensor.from_local(local, mesh, [placement or Shard(0)], run_check=False)
