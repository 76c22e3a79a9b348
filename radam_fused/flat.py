"""Flat buffers: parameters, moments and gradients side by side in contiguous memory."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .extension import _C, unavailable_reason
from .overlap import extent, first_overlap
from .state import State, can_step, check_grad
from .tensors import check_memory, describe, has_own_memory, is_dense, is_freed
from .values import flag

__all__ = ["FlatBuffer", "FlatGroup"]

ALIGNMENT = 128  # bytes


class Slot(NamedTuple):
    """The position of one parameter in a buffer.

    Attributes:
        name: Name of the parameter in the printed layout and in error messages.
        param: The parameter.
        buffer: The buffer that holds it.
        offset: Index of its first element in the buffer.
        shape: Shape of the parameter.
        stride: Strides of the parameter.
    """

    name: str
    param: Tensor
    buffer: Tensor
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def __str__(self) -> str:
        end = self.offset + self.shape.numel()
        return f"{self.offset}..{end}  {self.name} {tuple(self.shape)}"

    def __repr__(self) -> str:
        return f"Slot({self})"

    def slice(self, buffer: Tensor) -> Tensor:
        """The part of a buffer at this position, as a tensor with its own storage."""
        part: Tensor = _C.slice_of(buffer, self.offset, list(self.shape), list(self.stride))
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

    def check(self, name: str) -> None:
        """Check that the parameter lies in its buffer, or can be moved back into it.

        Args:
            name: Its name in the error message.

        Raises:
            ValueError: It has another device, dtype or shape than the slot, or was moved to shared
                memory or into a larger storage; the message names it.
        """
        param, shape = self.param, tuple(self.shape)
        if self.holds(param):
            return
        is_alike = (param.device, param.dtype, tuple(param.shape)) == (
            self.buffer.device,
            self.buffer.dtype,
            shape,
        )
        if not is_alike or _is_shared(param):
            how = "in shared memory " if is_alike else ""
            raise ValueError(
                f"{name} cannot return to its flat buffer: it has become {param.dtype} {how}of "
                f"shape {tuple(param.shape)} on {param.device}, expected {self.buffer.dtype} of "
                f"shape {shape} on {self.buffer.device}"
            )
        # As in the buckets of ZeroRedundancyOptimizer, which would then be stale.
        held = param.untyped_storage().nbytes()
        if is_dense(param) and held > param.numel() * param.element_size():
            raise ValueError(
                f"{name} cannot return to its flat buffer: it lies in a storage of {held} bytes "
                "with other values, expected memory of its own"
            )

    def bring_back(self) -> None:
        """Move a parameter that passed `check` back into its buffer, with its values."""
        if not self.holds(self.param):
            part = self.slice(self.buffer)
            part.copy_(self.param.detach())
            self.param.data = part


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
            Slot(name, param, self.data, offset, param.shape, param.stride())
            for (name, param), offset in zip(members, offsets, strict=False)
        ]
        for slot in self.slots:
            part = slot.slice(self.data)
            part.copy_(slot.param.detach())
            slot.param.data = part

    def __str__(self) -> str:
        dtype = str(self.data.dtype).removeprefix("torch.")
        return f"{self.data.device} {dtype}, {len(self.data)} elements"

    def __repr__(self) -> str:
        return f"FlatBuffer({len(self.slots)} parameters, {self})"

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
    (tied) has one slot. A parameter that gets other memory later (``.data = ...``) is moved back
    into its buffer, with its new values, by the next step. If it has another dtype, device or shape
    by then, or lies in shared memory, the step raises an error that names it.

    Args:
        params: Parameters, or pairs of name and parameter as from ``module.named_parameters()``.
        gradients: Keep the gradients in buffers as well, see `flatten_gradients`.

    Attributes:
        buffers: The buffers, in the order in which device and dtype first appear in params.

    Raises:
        ValueError: There is no parameter; or a parameter is not dense, has been freed, or overlaps
            another one in memory.
        TypeError: ``gradients`` is neither True nor False; or something is not a tensor, or is a
            tensor subclass that keeps its memory in other tensors.
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
        if error := flag("gradients")(gradients):
            raise error
        named = _named(params)
        if not named:
            raise ValueError("params has no parameter, expected at least one")
        if gradients:
            _check_gradients(named)
        self._fill(named)
        if gradients:
            self.flatten_gradients()

    @classmethod
    def of(cls, named: Sequence[tuple[str, Tensor]]) -> "FlatGroup":
        """As the constructor, also for no parameter: none of an optimizer's group can move."""
        flat = cls.__new__(cls)
        flat._fill(_named(named))
        return flat

    def _fill(self, named: Sequence[tuple[str, Tensor]]) -> None:
        if unavailable_reason is not None:
            raise RuntimeError(f"flat buffers need the extension: {unavailable_reason}")
        for name, param in named:
            _check(param, name)
        _check_apart(named)
        by_kind: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
        for name, param in named:
            by_kind.setdefault((param.device, param.dtype), []).append((name, param))
        with torch.no_grad():
            self.buffers = [FlatBuffer(members) for members in by_kind.values()]
        self._places = {
            id(slot.param): (buffer, slot) for buffer in self.buffers for slot in buffer.slots
        }

    def flatten_gradients(self) -> None:
        """Move the gradients into contiguous buffers, in which autograd then accumulates.

        A parameter that requires a gradient and has none gets zeros, so a step changes its moments,
        as after ``zero_grad(set_to_none=False)``.

        The step treats neighbours without padding as one range. Backward passes become slower:
        autograd adds each gradient to the buffer, which must be zeroed first, instead of keeping
        the tensor that it computed. A gradient that is set to None stays outside of the buffer
        until `zero_gradients`.

        Raises:
            ValueError: A parameter or a gradient has another shape, device, layout or kind of dtype
                than its slot, or no memory; the message names it, and nothing has changed.
            RuntimeError: A gradient is sparse.
        """
        self.check()
        _check_gradients((slot.name, slot.param) for b in self.buffers for slot in b.slots)
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
        """The buffer and the slot of a parameter, or None."""
        return self._places.get(id(param))

    def check(self) -> None:
        """Check that every parameter lies in its buffer.

        Raises:
            ValueError: A parameter has other memory; the message names it.
        """
        for buffer in self.buffers:
            for slot in buffer.slots:
                if not slot.holds(slot.param):
                    raise ValueError(
                        f"{slot.name} lies outside of its flat buffer, expected at element "
                        f"{slot.offset} of {len(buffer.data)} on {buffer.data.device}"
                    )

    def __str__(self) -> str:
        lines = []
        for buffer in self.buffers:
            lines += [str(buffer), *(f"  {slot}" for slot in buffer.slots)]
        return "\n".join(lines) or "no parameters"

    def __repr__(self) -> str:
        buffers = "; ".join(map(str, self.buffers))
        return f"FlatGroup({len(self._places)} parameters{': ' * bool(buffers)}{buffers})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy makes new buffers for the copied parameters.
        named = [(slot.name, slot.param) for buffer in self.buffers for slot in buffer.slots]
        return _rebuild, (named, self.has_gradients)


def _rebuild(named: list[tuple[str, Tensor]], gradients: bool) -> FlatGroup:
    flat = FlatGroup.of(named)
    if gradients:
        flat.flatten_gradients()
    return flat


def _named(params: Any) -> list[tuple[str, Tensor]]:
    """Parameters with their names, each once."""
    if isinstance(params, Tensor | str | dict) or not isinstance(params, Iterable):
        raise TypeError(f"params is {describe(params)}, expected an iterable of parameters")
    named: dict[int, tuple[str, Tensor]] = {}
    for i, item in enumerate(params):
        is_pair = isinstance(item, tuple) and len(item) == 2
        name, param = item if is_pair else (f"parameter {i}", item)
        if not isinstance(param, Tensor):
            raise TypeError(f"{name} is {describe(param)}, expected a tensor")
        named.setdefault(id(param), (name, param))
    return list(named.values())


def _check(param: Tensor, name: str) -> None:
    if param.layout != torch.strided:
        raise ValueError(f"{name} has layout {param.layout}, expected torch.strided")
    if not has_own_memory(param) or param.is_meta:
        raise TypeError(
            f"{name} is a {type(param).__name__} on {param.device} without its own memory, "
            "expected a parameter that can move into a flat buffer"
        )
    check_memory(param, name)
    if not is_dense(param):
        raise ValueError(
            f"{name} is not dense (strides {param.stride()} for shape {tuple(param.shape)}), "
            "expected elements without gaps or overlaps"
        )


def _check_gradients(named: Iterable[tuple[str, Tensor]]) -> None:
    for name, param in named:
        if param.grad is not None:
            check_grad(param, param.grad, name, "FlatGroup")


def _check_apart(named: Sequence[tuple[str, Tensor]]) -> None:
    overlap = first_overlap([extent(param, name) for name, param in named if param.numel() > 0])
    if overlap is not None:
        one, other = overlap
        raise ValueError(f"{other} overlaps {one} in memory, expected separate parameters")


def _is_shared(param: Tensor) -> bool:
    shared: bool = param.is_shared()  # type: ignore[no-untyped-call]
    return param.device.type == "cpu" and shared


def movable(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The parameters that can move into a flat buffer.

    The others stay where they are: parameters without elements side by side, without memory of
    their own, freed, in shared memory, of a dtype that no step supports, or overlapping another
    one.
    """
    found = {}
    for name, param in named:
        if is_lazy(param) or not can_step(param) or not has_own_memory(param) or param.is_meta:
            continue
        if is_dense(param) and not _is_shared(param) and not is_freed(param):
            found[id(param)] = name, param
    while True:
        keys = {str(key): key for key in found}
        ranges = [extent(param, str(key)) for key, (_, param) in found.items() if param.numel() > 0]
        overlap = first_overlap(ranges)
        if overlap is None:
            return list(found.values())
        for key in overlap:
            del found[keys[key]]
