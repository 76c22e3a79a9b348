"""Parameters side by side in contiguous buffers."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import arithmetic_dtype, has_own_memory, is_dense

__all__ = ["FlatBuffer", "FlatBuffers"]

ALIGNMENT = 128  # bytes


class Slot(NamedTuple):
    """The place of one parameter.

    Attributes:
        name: The parameter's, as the layout is printed and errors call it.
        param: The parameter, a view of the buffer.
        offset: Its first element's place in the buffer.
        stride: Its memory order.
    """

    name: str
    param: Tensor
    offset: int
    stride: tuple[int, ...]

    def view(self, buffer: Tensor) -> Tensor:
        """The part of a buffer that has the parameter's place, shape and memory order."""
        return buffer.as_strided(
            self.param.shape, self.param.stride(), buffer.storage_offset() + self.offset
        )


class FlatBuffer:
    """Parameters of one device and dtype in one contiguous tensor.

    Attributes:
        data: The buffer, 1-d, zero between the parameters.
        grad: A buffer of the same layout that the gradients are views of, or None.
        slots: The parameters in their order.
    """

    def __init__(self, members: Sequence[tuple[str, Tensor]]) -> None:
        first = members[0][1]
        self._unit = ALIGNMENT // first.element_size()
        self.slots: list[Slot] = []
        self._size = 0
        for name, param in members:
            self.slots.append(Slot(name, param, self._size, param.stride()))
            self._size += -(-param.numel() // self._unit) * self._unit
        self.data = self.zeros(first.dtype)
        self.grad: Tensor | None = None
        self._grad_views: list[Tensor] = []
        self._moments: dict[str, tuple[Tensor, list[Tensor]]] = {}
        for slot in self.slots:
            view = slot.view(self.data)
            view.copy_(slot.param.detach())
            slot.param.data = view

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """A new buffer of this layout, aligned and zero."""
        device = self.slots[0].param.device
        memory = torch.zeros(self._size + self._unit, dtype=dtype, device=device)
        start = -memory.data_ptr() % ALIGNMENT // memory.element_size()
        return memory[start : start + self._size]

    def is_in_place(self, slot: Slot) -> bool:
        """Whether a parameter still is the view of this buffer that it was made."""
        param, expected = slot.param, self.data.data_ptr()
        expected += slot.offset * self.data.element_size()
        return (
            param.device == self.data.device
            and param.dtype == self.data.dtype
            and (param.numel() < 2 or param.stride() == slot.stride)
            and (param.numel() == 0 or param.data_ptr() == expected)
        )

    def moments(self, name: str, dtype: torch.dtype) -> list[Tensor]:
        """Views of the buffer of a moment, one a parameter; the buffer is made on first use.

        Args:
            name: The moment's key in the optimizer's state.
            dtype: The moment's; with another one than before the buffer is made anew.
        """
        if name not in self._moments or self._moments[name][0].dtype != dtype:
            buffer = self.zeros(dtype)
            self._moments[name] = buffer, [slot.view(buffer) for slot in self.slots]
        return self._moments[name][1]

    def roles(self, moments: Sequence[str]) -> list[Tensor | None]:
        """The buffers of parameters, gradients and moments."""
        return [self.data, self.grad, *(self._moments[name][0] for name in moments)]

    def flatten_gradients(self) -> None:
        """Make the gradients views of one buffer, keeping their values."""
        self.grad = self.zeros(self.data.dtype)
        self._grad_views = [slot.view(self.grad) for slot in self.slots]
        for slot, view in zip(self.slots, self._grad_views, strict=True):
            if slot.param.grad is not None:
                view.copy_(slot.param.grad)
        self._attach_gradients()

    def zero_gradients(self) -> None:
        """Zero the gradients' buffer and attach gradients that were set to None again."""
        if self.grad is not None:
            self.grad.zero_()
            self._attach_gradients()

    def _attach_gradients(self) -> None:
        for slot, view in zip(self.slots, self._grad_views, strict=True):
            if not slot.param.requires_grad:
                slot.param.grad = None  # frozen: not to be stepped
            elif slot.param.grad is not view:
                slot.param.grad = view


class FlatBuffers:
    """Moves parameters into contiguous buffers, one for each device and dtype.

    Each parameter becomes a view that keeps its shape, its memory order and its identity, so the
    module that owns it notices nothing; it begins at a multiple of 128 bytes. A parameter that is
    listed more than once (tied) has one place. What is moved or re-pointed afterwards (``.to()`` of
    another dtype or device, ``.data = ...``) leaves its buffer.

    Args:
        params: Parameters, or pairs of name and parameter as ``module.named_parameters()`` gives.
        gradients: Keep the gradients in buffers as well, see :meth:`flatten_gradients`.

    Attributes:
        buffers: The buffers, in the order in which their device and dtype first appeared.

    Raises:
        ValueError: A parameter does not fill a range of memory, or shares some with another one.
        TypeError: A parameter is a tensor subclass that keeps its memory in other tensors.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> print(FlatBuffers(model.named_parameters()))
        cpu float32, 64 elements
          0..8  weight (2, 4)
          32..34  bias (2,)
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]], *, gradients: bool = False
    ) -> None:
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
            id(slot.param): (buffer, i)
            for buffer in self.buffers
            for i, slot in enumerate(buffer.slots)
        }
        if gradients:
            self.flatten_gradients()

    def flatten_gradients(self) -> None:
        """Make the gradients views of contiguous buffers, in which autograd then accumulates.

        Parameters that need a gradient and have none get one of zeros, so a step moves their
        moments too, as after ``zero_grad(set_to_none=False)``.

        A step is then one range, but autograd no longer hands over the tensors that it has
        computed: they are added to the buffer, which has to be zeroed before. A gradient that is
        set to None stays outside until :meth:`zero_gradients`.
        """
        with torch.no_grad():
            for buffer in self.buffers:
                buffer.flatten_gradients()

    def zero_gradients(self) -> None:
        """Zero the gradients' buffers, if there are any, and attach what was set to None again."""
        with torch.no_grad():
            for buffer in self.buffers:
                buffer.zero_gradients()

    @property
    def has_gradients(self) -> bool:
        """Whether the gradients are kept in buffers."""
        return any(buffer.grad is not None for buffer in self.buffers)

    def of(self, param: Tensor) -> FlatBuffer:
        """The buffer of a parameter."""
        return self._places[id(param)][0]

    def take_over(
        self, members: Sequence[tuple[Tensor, dict[str, Any]]], moments: Sequence[str]
    ) -> None:
        """Move moments into buffers of the parameters' layout, each state keeping its view.

        Args:
            members: Parameters with their states.
            moments: Keys of the moments in the states.
        """
        for name in moments:
            dtypes: dict[FlatBuffer, set[torch.dtype]] = {}
            for param, state in members:
                dtypes.setdefault(self.of(param), set()).add(state[name].dtype)
            for param, state in members:
                buffer, index = self._places[id(param)]
                held = dtypes[buffer]
                dtype = next(iter(held)) if len(held) == 1 else arithmetic_dtype(param)
                view = buffer.moments(name, dtype)[index]
                if state[name] is not view:
                    state[name] = view.copy_(state[name])

    def stray(self) -> tuple[FlatBuffer, Slot] | None:
        """The first parameter that has left its buffer, with that buffer, or None."""
        for buffer in self.buffers:
            for slot in buffer.slots:
                if not buffer.is_in_place(slot):
                    return buffer, slot
        return None

    def check(self) -> None:
        """Raise where a parameter has left its buffer.

        Raises:
            ValueError: It was moved or re-pointed; the message names it.
        """
        if (stray := self.stray()) is not None:
            buffer, slot = stray
            raise ValueError(
                f"{slot.name} no longer lies in its flat buffer, expected at element "
                f"{slot.offset} of {len(buffer.data)} on {buffer.data.device}: it was "
                "moved or re-pointed after that was made"
            )

    def __str__(self) -> str:
        lines = []
        for buffer in self.buffers:
            dtype = str(buffer.data.dtype).removeprefix("torch.")
            lines.append(f"{buffer.data.device} {dtype}, {len(buffer.data)} elements")
            for name, param, offset, _ in buffer.slots:
                end = offset + param.numel()
                lines.append(f"  {offset}..{end}  {name} {tuple(param.shape)}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy makes its own buffers for the copied parameters.
        named = [(slot.name, slot.param) for buffer in self.buffers for slot in buffer.slots]
        return _rebuild, (named, self.has_gradients)


def _rebuild(named: list[tuple[str, Tensor]], gradients: bool) -> FlatBuffers:
    return FlatBuffers(named, gradients=gradients)


def _check(param: Tensor, name: str) -> None:
    if not has_own_memory(param) or param.is_meta:
        raise TypeError(f"{name} has no memory of its own, which a flat buffer could take over")
    if not is_dense(param):
        raise ValueError(f"{name} does not fill a range of memory, expected no gaps between rows")


def _check_apart(named: Sequence[tuple[str, Tensor]]) -> None:
    ranges = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in named
        if p.numel() > 0
    )
    for (device, _, end, name), (next_device, start, _, next_name) in pairwise(ranges):
        if device == next_device and start < end:
            raise ValueError(f"{next_name} shares memory with {name}, expected one parameter")
