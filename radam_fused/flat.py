"""Flat buffers: parameters, moments and gradients side by side in contiguous memory."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .extension import _C, unavailable_reason
from .state import State, has_own_memory, is_dense

__all__ = ["FlatBuffer", "FlatGroup"]

ALIGNMENT = 128  # bytes


class Slot(NamedTuple):
    """The position of one parameter in a buffer.

    Attributes:
        name: Name of the parameter in the printed layout and in error messages.
        param: The parameter.
        buffer: The buffer that holds it.
        offset: Index of its first element in the buffer.
        stride: Strides of the parameter.
    """

    name: str
    param: Tensor
    buffer: Tensor
    offset: int
    stride: tuple[int, ...]

    def slice(self, buffer: Tensor) -> Tensor:
        """The part of a buffer at this position, as a tensor with its own storage."""
        part: Tensor = _C.slice_of(buffer, self.offset, list(self.param.shape), list(self.stride))
        return part

    def is_at(self, tensor: Tensor, buffer: Tensor) -> bool:
        """Whether a tensor is the part of a buffer at this position."""
        expected = buffer.data_ptr() + self.offset * buffer.element_size()
        return (
            tensor.device == buffer.device
            and tensor.dtype == buffer.dtype
            and (tensor.numel() < 2 or tensor.stride() == self.stride)
            and (tensor.numel() == 0 or tensor.data_ptr() == expected)
        )

    def holds(self, param: Tensor) -> bool:
        """Whether a parameter is the one of this slot and still lies here."""
        return param is self.param and self.is_at(param, self.buffer)


class FlatBuffer:
    """Parameters of one device and dtype in one contiguous tensor.

    Attributes:
        data: The 1-d buffer; zero between the parameters.
        grad: A buffer with the same layout that holds the gradients, or None.
        slots: The slots of the parameters, in order.
    """

    def __init__(self, members: Sequence[tuple[str, Tensor]]) -> None:
        first = members[0][1]
        unit = ALIGNMENT // first.element_size()
        offsets = [0]
        for _, param in members:
            offsets.append(offsets[-1] + -(-param.numel() // unit) * unit)
        self._size, self._device = offsets[-1], first.device
        self.data = self.zeros(first.dtype)
        self.grad: Tensor | None = None
        self._grads: list[Tensor] = []
        self._moments: dict[tuple[str, torch.dtype], Tensor] = {}
        self.slots = [
            Slot(name, param, self.data, offset, param.stride())
            for (name, param), offset in zip(members, offsets, strict=False)
        ]
        for slot in self.slots:
            part = slot.slice(self.data)
            part.copy_(slot.param.detach())
            slot.param.data = part

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """A new, aligned buffer of zeros with this layout."""
        unit = ALIGNMENT // dtype.itemsize
        memory = torch.zeros(self._size + unit, dtype=dtype, device=self._device)
        start = -memory.data_ptr() % ALIGNMENT // memory.element_size()
        return memory[start : start + self._size]

    def take_over(self, slot: Slot, state: State, names: Iterable[str]) -> None:
        """Move the moments of a parameter into buffers. Each moment stays the same object.

        Args:
            slot: Slot of the parameter.
            state: State of the parameter.
            names: Keys of the moments in the state.
        """
        for name in names:
            moment = state[name]
            if (name, moment.dtype) not in self._moments:
                self._moments[name, moment.dtype] = self.zeros(moment.dtype)
            buffer = self._moments[name, moment.dtype]
            if not slot.is_at(moment, buffer):
                moment.data = slot.slice(buffer).copy_(moment)

    def flatten_gradients(self) -> None:
        """Move the gradients into one buffer, with their values."""
        self.grad = self.zeros(self.data.dtype)
        self._grads = [slot.slice(self.grad) for slot in self.slots]
        for slot, part in zip(self.slots, self._grads, strict=True):
            if slot.param.grad is not None:
                part.copy_(slot.param.grad)
        self._attach_gradients()

    def zero_gradients(self) -> None:
        """Zero the gradient buffer, and attach its parts where gradients were set to None."""
        if self.grad is not None:
            self.grad.zero_()
            self._attach_gradients()

    def _attach_gradients(self) -> None:
        for slot, part in zip(self.slots, self._grads, strict=True):
            if not slot.param.requires_grad:
                slot.param.grad = None  # frozen: the step must skip it
            elif slot.param.grad is not part:
                slot.param.grad = part


class FlatGroup:
    """Moves parameters into contiguous buffers, one per device and dtype.

    Each parameter keeps its shape, memory order, identity and its own storage, so its module works
    as before. It begins at a multiple of 128 bytes. A parameter that is listed more than once
    (tied) has one slot. A parameter that is moved or re-pointed later (``.to()`` another dtype or
    device, ``.data = ...``, ``share_memory_()``, ``resize_()``) leaves its buffer; the next step
    raises an error that names it.

    Args:
        params: Parameters, or pairs of name and parameter as from ``module.named_parameters()``.
        gradients: Keep the gradients in buffers as well, see :meth:`flatten_gradients`.

    Attributes:
        buffers: The buffers, in the order in which device and dtype first appear in params.

    Raises:
        ValueError: A parameter is not dense, or overlaps another one in memory.
        TypeError: A parameter is a tensor subclass that keeps its memory in other tensors.
        RuntimeError: The extension cannot be loaded; the message says why.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> print(FlatGroup(model.named_parameters()))
        cpu float32, 64 elements
          0..8  weight (2, 4)
          32..34  bias (2,)
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]], *, gradients: bool = False
    ) -> None:
        if unavailable_reason is not None:
            raise RuntimeError(f"flat buffers need the extension: {unavailable_reason}")
        named: dict[int, tuple[str, Tensor]] = {}
        for i, item in enumerate(params):
            name, param = item if isinstance(item, tuple) else (f"parameter {i}", item)
            named.setdefault(id(param), (name, param))
        for name, param in named.values():
            _check(param, name)
        _check_apart(list(named.values()))
        by_kind: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
        for name, param in named.values():
            by_kind.setdefault((param.device, param.dtype), []).append((name, param))
        with torch.no_grad():
            self.buffers = [FlatBuffer(members) for members in by_kind.values()]
        self._places = {
            id(slot.param): (buffer, slot) for buffer in self.buffers for slot in buffer.slots
        }
        if gradients:
            self.flatten_gradients()

    def flatten_gradients(self) -> None:
        """Move the gradients into contiguous buffers, in which autograd then accumulates.

        A parameter that requires a gradient and has none gets zeros, so a step changes its moments,
        as after ``zero_grad(set_to_none=False)``.

        The step treats neighbours without padding as one range. Backward passes become slower:
        autograd adds each gradient to the buffer, which must be zeroed first, instead of keeping
        the tensor that it computed. A gradient that is set to None stays outside of the buffer
        until :meth:`zero_gradients`.
        """
        with torch.no_grad():
            for buffer in self.buffers:
                buffer.flatten_gradients()

    def zero_gradients(self) -> None:
        """Zero the gradient buffers, and attach their parts where gradients were set to None."""
        with torch.no_grad():
            for buffer in self.buffers:
                buffer.zero_gradients()

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients lie in buffers."""
        return any(buffer.grad is not None for buffer in self.buffers)

    def find(self, param: Tensor) -> tuple[FlatBuffer, Slot] | None:
        """The buffer and the slot of a parameter, or None.

        Raises:
            ValueError: The parameter was moved or re-pointed; the message names it.
        """
        found = self._places.get(id(param))
        if found is not None:
            _check_slot(*found)
        return found

    def check(self) -> None:
        """Check that every parameter lies in its buffer.

        Raises:
            ValueError: A parameter was moved or re-pointed; the message names it.
        """
        for buffer in self.buffers:
            for slot in buffer.slots:
                _check_slot(buffer, slot)

    def __str__(self) -> str:
        lines = []
        for buffer in self.buffers:
            dtype = str(buffer.data.dtype).removeprefix("torch.")
            lines.append(f"{buffer.data.device} {dtype}, {len(buffer.data)} elements")
            for slot in buffer.slots:
                end = slot.offset + slot.param.numel()
                lines.append(f"  {slot.offset}..{end}  {slot.name} {tuple(slot.param.shape)}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy makes new buffers for the copied parameters.
        named = [(slot.name, slot.param) for buffer in self.buffers for slot in buffer.slots]
        return _rebuild, (named, self.has_gradients)


def _check_slot(buffer: FlatBuffer, slot: Slot) -> None:
    if not slot.holds(slot.param):
        raise ValueError(
            f"{slot.name} no longer lies in its flat buffer, expected at element {slot.offset} of "
            f"{len(buffer.data)} on {buffer.data.device}: it was moved or re-pointed after the "
            "buffer was made"
        )


def _rebuild(named: list[tuple[str, Tensor]], gradients: bool) -> FlatGroup:
    return FlatGroup(named, gradients=gradients)


def _check(param: Tensor, name: str) -> None:
    if not has_own_memory(param) or param.is_meta:
        raise TypeError(
            f"{name} is a {type(param).__name__} on {param.device} without its own memory, "
            "expected a parameter that can move into a flat buffer"
        )
    if not is_dense(param):
        raise ValueError(
            f"{name} is not dense (strides {param.stride()} for shape {tuple(param.shape)}), "
            "expected elements without gaps or overlaps"
        )


def _check_apart(named: Sequence[tuple[str, Tensor]]) -> None:
    ranges = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in named
        if p.numel() > 0
    )
    for (device, _, end, name), (next_device, start, _, next_name) in pairwise(ranges):
        if device == next_device and start < end:
            raise ValueError(f"{next_name} overlaps {name} in memory, expected separate parameters")
