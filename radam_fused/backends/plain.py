"""What every engine uses of the extension, in Python, for where that does not load."""

import struct
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tensors import MOMENTS, arithmetic_dtype, is_dense

State = dict[str, Any]

PARAM, GRAD = 0, 1
_NAMES = ("parameter", "gradient", *MOMENTS)
_SEGMENT = struct.Struct("8q")  # as csrc/segments.h has it


def same_objects(held: list[Any] | dict[Any, Any], expected: list[Any]) -> bool:
    """Whether a list, or the values of a dict, are these very objects in this order."""
    objects = held.values() if isinstance(held, dict) else held
    return len(held) == len(expected) and all(map(is_, objects, expected))


def any_gradient(params: list[Tensor]) -> bool:
    """Whether some parameter has a gradient."""
    return any(param.grad is not None for param in params)


class _Row(NamedTuple):
    """One parameter."""

    param: Tensor
    state: State
    step: Tensor  # the counter's view, as state["step"]
    moments: list[Tensor]
    strides: list[int]  # of the dimensions of more than one element, the only ones that are used
    numel: int  # real scalars
    offset: int  # of the first in the flat buffers, if there are any


class _Segment(NamedTuple):
    """A range of memory; fields as in csrc/segments.h, addresses by role."""

    addresses: tuple[int, ...]
    numel: int
    first: int
    coefficients: int


class TensorTable:
    """As csrc/tensor_table.h describes it, method by method.

    Args:
        params: Leaves, dense in memory.
        states: One a parameter.
        steps: The counters, one tensor of which every state's ``step`` is a view.
        amsgrad: Whether the states hold running maxima.
        flat: None, or the flat buffers of parameters, gradients (or None) and moments.
        chunk: Scalars to whose multiples the launch pads its segments.
        counts_on_device: Whether the steps are counted where the parameters are.

    Raises:
        ValueError: A tensor does not fit its parameter.
    """

    def __init__(
        self,
        params: list[Tensor],
        states: list[State],
        steps: Tensor,
        amsgrad: bool,
        flat: list[Tensor | None] | None = None,
        chunk: int = 1,
        counts_on_device: bool = False,
    ) -> None:
        first = params[0]
        self._steps = steps
        self._names = MOMENTS if amsgrad else MOMENTS[:2]
        self._flat = flat
        self._chunk = chunk
        self._counts_on_device = counts_on_device
        self._device = first.device
        grads = (param.grad.dtype for param in params if param.grad is not None)
        moments = [states[0][name].dtype for name in self._names]
        self._dtypes = [first.dtype, next(grads, first.dtype), *moments]
        self._rows: list[_Row] = []
        for i, (param, state) in enumerate(zip(params, states, strict=True)):
            if not is_dense(param):
                raise ValueError(f"parameter {i} does not fill a range of memory")
            tensors = [param, param.grad, *(state[name] for name in self._names)]
            strides = [n for n, size in zip(param.stride(), param.shape, strict=True) if size > 1]
            numel = param.numel() * (2 if param.is_complex() else 1)
            offset = 0
            if flat is not None and numel > 0:
                offset = self._place(i, tensors)
            row = _Row(param, state, state["step"], tensors[2:], strides, numel, offset)
            for role, tensor in enumerate(tensors):
                if tensor is not None and not self._fits(row, role, tensor):
                    raise ValueError(
                        f"{_NAMES[role]} {i} differs in device, dtype, shape or memory order"
                    )
            self._rows.append(row)
        self._check_dtypes(first)
        where = self._device if counts_on_device else torch.device("cpu")
        if steps.device != where or len(steps) != len(params) or not steps.is_contiguous():
            raise ValueError("steps must be one tensor, on the CPU or, if counted there, elsewhere")
        self._segments: list[_Segment] = []
        self.active: list[int] = []
        self.active_is_unchanged = True
        self._grads: list[Tensor] = []  # held while their memory is in use

    def _check_dtypes(self, param: Tensor) -> None:
        if self._dtypes[GRAD].is_complex != param.is_complex():
            raise ValueError("gradient has an unsupported dtype")
        for name, dtype in zip(self._names, self._dtypes[2:], strict=True):
            if dtype not in (arithmetic_dtype(param), param.dtype):
                raise ValueError(f"{name} has an unsupported dtype")

    def _scalar_bytes(self, role: int) -> int:
        dtype = self._dtypes[role]
        size: int = dtype.itemsize
        return size // 2 if dtype.is_complex else size

    def _place(self, index: int, tensors: list[Tensor]) -> int:
        """At which scalar of its flat buffers a parameter and all its moments lie."""
        assert self._flat is not None
        offsets = {
            divmod(tensor.data_ptr() - buffer.data_ptr(), self._scalar_bytes(role))
            for role, (tensor, buffer) in enumerate(zip(tensors, self._flat, strict=True))
            if role != GRAD and buffer is not None
        }
        if len(offsets) != 1 or (place := offsets.pop())[1] != 0 or place[0] < 0:
            raise ValueError(f"parameter {index} does not lie in its flat buffer")
        return place[0]

    def _fits(self, row: _Row, role: int, tensor: Tensor) -> bool:
        return (
            type(tensor) in (Tensor, type(row.param))
            and tensor.layout is torch.strided
            and tensor.device == self._device
            and tensor.dtype == self._dtypes[role]
            and tensor.shape == row.param.shape
            and not (tensor.is_conj() or tensor.is_neg())
            and (
                row.numel == 0
                or row.strides
                == [n for n, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
            )
        )

    def refresh(self, alignment: int) -> list[float] | None:
        """Read every tensor, each parameter's gradient included.

        Args:
            alignment: Bytes to whose multiples flat buffers pad, over which neighbours become one
                segment; 0 where padding is to stay out.

        Returns:
            The distinct step counts that the parameters with a gradient are about to reach (none
            where the device counts), or None when a tensor no longer is what the table was made
            for.
        """
        before, self.active, self._segments, self._grads = self.active, [], [], []
        # Counted in the counter's own precision, as torch counts.
        counts = [] if self._counts_on_device else (self._steps + 1).tolist()
        due: dict[float, int] = {}
        for i, row in enumerate(self._rows):
            grad = row.param.grad
            if grad is None:
                continue
            addresses = self._addresses(row, grad)
            if addresses is None:
                return None
            self._grads.append(grad)
            self.active.append(i)
            coefficients = i
            if not self._counts_on_device:
                coefficients = due.setdefault(counts[i], len(due))
            # The device counts also the steps of a parameter without elements.
            if row.numel > 0 or self._counts_on_device:
                self._add(row, addresses, coefficients, alignment)
        self.active_is_unchanged = self.active == before
        return list(due)

    def _addresses(self, row: _Row, grad: Tensor) -> tuple[int, ...] | None:
        if row.state.get("step") is not row.step or not all(
            row.state.get(name) is moment
            for name, moment in zip(self._names, row.moments, strict=True)
        ):
            return None
        tensors = [row.param, grad, *row.moments]
        if not all(self._fits(row, role, tensor) for role, tensor in enumerate(tensors)):
            return None
        if self._flat is None or row.numel == 0:
            return tuple(tensor.data_ptr() for tensor in tensors)
        addresses = tuple(
            grad.data_ptr()
            if role == GRAD or buffer is None
            else buffer.data_ptr() + row.offset * self._scalar_bytes(role)
            for role, buffer in enumerate(self._flat)
        )
        return addresses if addresses[PARAM] == row.param.data_ptr() else None

    def _add(
        self, row: _Row, addresses: tuple[int, ...], coefficients: int, alignment: int
    ) -> None:
        first = 0
        if self._segments:
            last = self._segments[-1]
            if self._flat is not None and last.coefficients == coefficients:
                distance = self._distance(row, addresses, last, alignment, self._flat[GRAD])
                if distance is not None:
                    self._segments[-1] = last._replace(numel=distance + row.numel)
                    return
            first = last.first + -(-last.numel // self._chunk) * self._chunk
        self._segments.append(_Segment(addresses, row.numel, first, coefficients))

    def _distance(
        self,
        row: _Row,
        addresses: tuple[int, ...],
        last: _Segment,
        alignment: int,
        grads: Tensor | None,
    ) -> int | None:
        """Scalars from the last segment's first to this one's, if both are one range."""
        param, grad = (
            (addresses[role] - last.addresses[role]) / self._scalar_bytes(role)
            for role in (PARAM, GRAD)
        )
        if param < last.numel or grad != param:
            return None
        distance = int(param)
        if distance == last.numel:
            return distance
        # What lies between is padding of ours only where the gradient's buffer is ours as well, and
        # where no other parameter fits: each takes whole multiples of the alignment.
        is_padding = (
            grads is not None
            and (distance - last.numel) * self._scalar_bytes(PARAM) < alignment
            and addresses[GRAD] == grads.data_ptr() + row.offset * self._scalar_bytes(GRAD)
        )
        return distance if is_padding else None

    @property
    def ranges(self) -> int:
        """How many segments the step has that refresh() prepared."""
        return len(self._segments)

    @property
    def segments(self) -> bytes:
        """The segments themselves, as csrc/segments.h has them."""
        return b"".join(
            _SEGMENT.pack(*addresses, *[0] * (5 - len(addresses)), numel, first, coefficients)
            for addresses, numel, first, coefficients in self._segments
        )

    def finish(self) -> None:
        """Count the step for the parameters that took part and let go of their gradients."""
        if not self._counts_on_device:
            if len(self.active) == len(self._rows):
                self._steps += 1
            else:
                self._steps[self.active] += 1
        self._segments, self._grads = [], []
