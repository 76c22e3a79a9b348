"""A running optimizer that a test spoils, and what has changed in it."""

import ast
import contextlib
import copy
import signal
import sys
from functools import partial
from math import inf, nan
from pathlib import Path

import torch
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import swap_tensors

import radam_fused
from radam_fused import PRESETS, FlatGroup, FusedRAdam, radam_step_, rectification
from radam_fused.tensors import is_freed

from .helpers import gradients, parameters, same_bits, train

PACKAGE = str(Path(radam_fused.__file__).parent)


def free(tensor):
    tensor.untyped_storage().resize_(0)


def freed(tensor):
    free(tensor)
    return tensor


def with_gradient(tensor):
    param = Parameter(tensor)
    param.grad = torch.ones_like(param)
    return param


class _GradientElsewhere(Parameter):
    """A parameter whose gradient is on another device. torch does not let anyone assign it."""

    @property
    def grad(self):
        return self.elsewhere


def with_gradient_on(device, param):
    odd = _GradientElsewhere(param.detach())
    odd.elsewhere = torch.ones_like(param, device=device)
    return odd


def step_of(param, make, **options):
    param = Parameter(param)
    optimizer = make([param], **options)
    param.grad = torch.ones_like(param)
    optimizer.step()


@contextlib.contextmanager
def interrupt(after=30):
    """Ctrl-C before a line of the package is executed, counted from the first one.

    The trace function can raise where no signal arrives: where a with statement ends, before it
    calls the exits of its contexts. The gradient mode is therefore restored here.
    """
    left = [after]

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    # A process in the background may ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with_gradients = torch.is_grad_enabled()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(with_gradients)
        signal.signal(signal.SIGINT, handler)


class Running:
    """An optimizer of two parameters after six steps, with gradients for the next one.

    Args:
        make: The class of the optimizer, with its options.
        device: The device of the parameters.
        **names: More names for `execute`.
    """

    def __init__(self, make, device="cpu", **names):
        w, b = (Parameter(p.detach().to(device)) for p in parameters((3, 4), (4,)))
        *steps, last = gradients([w, b], 7)
        steps = [[grad.to(device) for grad in grads] for grads in steps]
        self.optimizer = optimizer = train(make([("w", w), ("b", b)]), steps)
        for p, grad in zip((w, b), last, strict=True):
            p.grad = grad.to(device, copy=True)
        self.params = w, b
        lists = [[p.detach().clone() for p in (w, b)], [w.grad, b.grad]]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            lists.append([optimizer.state[p][key].clone() for p in (w, b)])
        self.names = {
            "torch": torch,
            "inf": inf,
            "nan": nan,
            "Parameter": Parameter,
            "TwoTensor": TwoTensor,
            "swap_tensors": swap_tensors,
            "PRESETS": PRESETS,
            "FlatGroup": FlatGroup,
            "rectification": rectification,
            "FusedRAdam": make,
            "free": free,
            "freed": freed,
            "with_gradient": with_gradient,
            "with_gradient_on": with_gradient_on,
            "step_of": partial(step_of, make=make),
            "interrupt": interrupt,
            "w": w,
            "b": b,
            "optimizer": optimizer,
            "group": optimizer.param_groups[0],
            "state": optimizer.state[w],
            "saved": copy.deepcopy(optimizer.state_dict()),
            "lists": tuple(lists),
            **names,
        }

    def execute(self, code):
        """Run statements and a step.

        Returns:
            The error, or None; and the names of what the last statement, or the step, has changed.
        """
        before, tree = self.picture(), ast.parse(code)
        try:
            for statement in tree.body:
                before = self.picture()
                exec(compile(ast.Module([statement], []), "<row>", "exec"), self.names)
            before = self.picture()
            self.optimizer.step()
        except (Exception, KeyboardInterrupt) as error:
            return error, differences(before, self.picture())
        return None, differences(before, self.picture())

    def picture(self):
        """Everything that a step or a load could change."""
        optimizer, found = self.optimizer, {}
        for number, tensors in enumerate(self.names["lists"]):
            found |= {f"{i} of list {number}": held(tensor) for i, tensor in enumerate(tensors)}
        states = optimizer.state if isinstance(optimizer.state, dict) else {}
        for name, p in zip("wb", self.params, strict=True):
            found |= {name: held(p), f"gradient of {name}": held(p.grad)}
            state = states.get(p)
            found[f"state of {name}"] = state
            for key, value in state.items() if isinstance(state, dict) else ():
                found[f"{key} of {name}"] = held(value)
        groups = optimizer.param_groups
        for i, group in enumerate(groups if isinstance(groups, list) else ()):
            items = group.items() if isinstance(group, dict) else ()
            found |= {f"{key} of group {i}": held(value) for key, value in items}
        found["number of states"] = len(states)
        return found


def held(value):
    """A value, or a copy of the values of a tensor."""
    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
        return value
    return value if value.is_nested or is_freed(value) else value.detach().clone()


def differences(before, after):
    """The names under which two pictures differ."""
    return [
        name
        for name in {**before, **after}
        if name not in before or name not in after or not are_same(before[name], after[name])
    ]


def are_same(a, b):
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    if a is b or not tensors:
        return a is b or (not tensors and a == b)
    if torch.float8_e4m3fn in (a.dtype, b.dtype) or a.dtype.itemsize not in (2, 4, 8, 16):
        return a.dtype == b.dtype and torch.equal(a.float(), b.float())
    return same_bits(a, b)


def fused(backend):
    """A class of optimizers that a row of the table can construct."""
    return partial(FusedRAdam, backend=backend)


def by_torch(params, **options):
    """The optimizer of torch for the same row."""
    options.pop("backend", None)
    return torch.optim.RAdam(params, **options)


def names_of(backend):
    """The names that depend on the backend."""
    flat = Parameter(torch.ones(5))
    optimizer = FusedRAdam([flat], flatten=True, backend=backend)
    flat.grad = torch.ones(5)
    optimizer.step()
    optimizer.w = flat
    scaled = FusedRAdam([with_gradient(torch.ones(5))], fused=True, backend=backend)
    function = partial(radam_step_, backend=backend)
    return {"radam_step_": function, "flat": optimizer, "scaled": scaled}
