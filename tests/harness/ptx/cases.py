"""Optimizers with drawn tensors, one on a device backend and one on the CPU kernel."""

from typing import NamedTuple

import torch

from radam_fused import FusedRAdam

from ..helpers import assert_same_run
from .data import placed, values
from .stored import Stored
from .tables import MASTERS

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def moments(param):
    """The possible dtypes of the moments of a parameter."""
    return dict.fromkeys((max(param, torch.float32, key=lambda dtype: dtype.itemsize), param))


DTYPES = [Stored(p, g, m) for p in FLOATS for g in FLOATS for m in moments(p)]


_MASTERS = {"param_remainder": torch.int16, "master_param": torch.float32}


class Row(NamedTuple):
    """A parameter: its size, its step count, and the names of its misaligned tensors."""

    size: int
    taken: int = 0
    misaligned: tuple[str, ...] = ()


class Pair:
    """The same parameters under two backends.

    Args:
        backend: The one that is held against the CPU kernel.
        stored: How the tensors are stored.
        groups: The options and the rows of each.
        draw: What the numbers are drawn by.
        amsgrad: Whether there are running maxima.
        odd: How many of the numbers are special.
        on_device: Whether the device counts the steps.
        counter: The dtype in which they are counted.
    """

    def __init__(
        self,
        backend,
        stored,
        groups,
        draw,
        amsgrad=False,
        odd=0.0,
        on_device=False,
        counter=torch.float32,
    ):
        self._stored = stored = Stored(*stored)
        param, self._grad, moment = stored[:3]
        self._counter = counter
        self._rows = [row for _, rows in groups for row in rows]
        self._draw, self._odd = draw, odd
        roles = {"param": param, "exp_avg": moment, "exp_avg_sq": moment}
        if amsgrad:
            roles["max_exp_avg_sq"] = moment
        roles |= {role: _MASTERS[role] for role in MASTERS[stored.master]}
        drawn = [
            {
                role: values(row.size, dtype, draw, odd, positive=role.endswith("_sq"))
                for role, dtype in roles.items()
            }
            for row in self._rows
        ]
        ours = [
            {role: self._place(data, row, role) for role, data in tensors.items()}
            for row, tensors in zip(self._rows, drawn, strict=True)
        ]
        self.ours = self._optimizer(backend, groups, ours, amsgrad)
        self.theirs = self._optimizer("cpu", groups, drawn, amsgrad)
        for group in self.ours.param_groups:
            group["capturable"] = on_device
        for group in self.theirs.param_groups:
            group["lr"] = float(group["lr"])

    def _place(self, data, row, role):
        return placed(data, self._draw, role in row.misaligned)

    def _optimizer(self, backend, groups, tensors, amsgrad):
        remaining = zip(self._rows, tensors, strict=True)
        states, made = {}, []
        for options, rows in groups:
            params = []
            for _ in rows:
                row, state = next(remaining)
                p = torch.nn.Parameter(state["param"])
                p.grad_dtype = None
                params.append(p)
                states[p] = {"step": torch.tensor(float(row.taken), dtype=self._counter), **state}
                del states[p]["param"]
            made.append({"params": params, **options})
        optimizer = FusedRAdam(
            made, backend=backend, amsgrad=amsgrad, seed=11, **self._stored.options()
        )
        optimizer.state.update(states)
        return optimizer

    def step(self, grad_scale=None, found_inf=None, absent=0.0):
        """Step both with the same gradients, and assert that they have the same bits.

        Args:
            absent: How many of the gradients are absent.
        """
        grads = [
            values(row.size, self._grad, self._draw, self._odd)
            if self._draw.random() >= absent
            else None
            for row in self._rows
        ]
        for optimizer in (self.ours, self.theirs):
            if grad_scale is not None:
                optimizer._step_supports_amp_scaling = True
                optimizer.grad_scale = torch.tensor(grad_scale)
                optimizer.found_inf = torch.tensor(found_inf)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for p, grad, row in zip(params, grads, self._rows, strict=True):
                is_placed = grad is not None and optimizer is self.ours
                p.grad = self._place(grad, row, "grad") if is_placed else grad
            optimizer.step()
        assert_same_run(self.ours, self.theirs)


ROLES = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def every_way():
    """Groups that need every branch of a kernel.

    Each kind of update with and without the parameter in the gradient; chunks that are whole, in
    part, and not aligned because of each of their tensors; moments with small and large weights.
    """
    for momentum in (True, False):
        for decay in ({"weight_decay": 0.1}, {"weight_decay": 0.3, "decoupled_weight_decay": True}):
            rows = []
            for taken in (0, 20):
                rows += [Row(size, taken) for size in (2048, 1030, 700, 260, 3)]
                rows += [Row(1030, taken, (role,)) for role in ROLES]
            options = {"degenerated_to_sgd": momentum, "eps": 1e-2, "lr": 0.1, **decay}
            yield options, rows
            # Large weights, for which each moment has another form.
            few = [Row(1030), Row(1030, 0, ("grad",)), Row(3)]
            for rectify in (True, False):
                yield options | {"betas": (0.3, 0.2), "rectify": rectify}, few
