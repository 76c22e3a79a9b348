"""The numbers of a parameter's elements, which random bits depend on."""

from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtensors import is_dtensor, local, shard_of
from .groups import Groups, Place, given_name, params_of


class Elements(NamedTuple):
    """The elements of a parameter that a process has. They are counted in memory order.

    Attributes:
        parameter: Number of the parameter: a hash of its name, or its index in the optimizer.
        offset: Place of the first element in the full tensor.
        run: Elements that lie side by side in the full tensor, until a gap.
        stride: From the start of a run to that of the next one.
    """

    parameter: int
    offset: int
    run: int
    stride: int

    def places(self, like: Tensor) -> Tensor:
        """The place of each element in the full tensor, as int64 in the shape of a tensor."""
        count = torch.arange(like.numel(), device=like.device)
        numbers = torch.empty_like(like, dtype=torch.int64)
        numbers.as_strided((numbers.numel(),), (1,)).copy_(count)
        return self.offset + numbers // self.run * self.stride + numbers % self.run


def elements_of(param: Tensor, place: Place, name: str, groups: Groups) -> Elements:
    """The numbers of a parameter's elements.

    Args:
        param: The parameter.
        place: Its position in the groups.
        name: Its name in error messages.
        groups: The optimizer's parameter groups.

    Raises:
        ValueError: It is a DTensor whose elements cannot be numbered: their places do not follow
            from an offset, a run and a stride.
    """
    given = given_name(groups, place)
    if given is None:
        parameter = sum(len(params_of(group)) for group in groups[: place[0]]) + place[1]
    else:
        parameter = int.from_bytes(blake2b(given.encode(), digest_size=8).digest(), "little")
    count = max(1, local(param).numel())
    if not is_dtensor(param):
        return Elements(parameter, 0, count, count)
    found = _places(param)
    if found is None:
        raise ValueError(
            f"stochastic rounding cannot number the elements of {name} with placements "
            f"{param.placements}, expected one range of at most one dimension beside the first"  # type: ignore[attr-defined]
        )
    return Elements(parameter, *found)


def _places(param: Any) -> tuple[int, int, int] | None:
    """Offset, run and stride of a shard in the memory order of the full tensor; None if others."""
    shard = shard_of(param)
    part, full = local(param), list(param.shape)
    order = sorted(range(param.ndim), key=lambda dim: (param.stride()[dim], -dim))
    if shard is None or not _is_regular(param, order):
        return None
    if part.numel() == 0:
        return 0, 1, 1
    strides = [part.stride()[dim] for dim in order if part.shape[dim] > 1]
    if strides != sorted(strides):
        return None
    offset, scale = 0, 1
    loops: list[tuple[int, int]] = []  # size and stride in the full tensor, innermost first
    for dim in order:
        first, size = shard[dim]
        offset += first * scale
        if size > 1:
            loops.append((size, scale))
        scale *= full[dim]
    merged = [(1, 1)]
    for size, stride in loops:
        inner, inner_stride = merged[-1]
        if stride == inner * inner_stride:
            merged[-1] = inner * size, inner_stride
        else:
            merged.append((size, stride))
    return offset, merged[0][0], merged[-1][1] if len(merged) == 2 else merged[0][0]


def _is_regular(param: Any, order: list[int]) -> bool:
    """Whether at most one dimension is cut beside the outermost one: the same on every process."""
    sizes = zip(param.placements, param.device_mesh.shape, strict=True)
    cut = {placement.dim for placement, size in sizes if placement.is_shard() and size > 1}
    outer_first = [dim for dim in reversed(order) if param.shape[dim] > 1]
    return len([dim for dim in outer_first[1:] if dim in cut]) <= 1
