"""DTensors: their local tensors, and where their shards lie."""

import math
import sys
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import Parameter

_PLAIN = frozenset((Tensor, Parameter))  # the types of most tensors, looked at first


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    if type(tensor) in _PLAIN:
        return False
    # Where there is one, its module has been imported; to import it takes long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(tensor) is getattr(module, "DTensor", None)


def local(tensor: Any) -> Any:
    """The local tensor of a DTensor, on which a step works; any other tensor itself.

    Waits for a collective operation that still computes it.
    """
    if type(tensor) in _PLAIN or not is_dtensor(tensor):
        return tensor
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    found = tensor._local_tensor
    if isinstance(found, AsyncCollectiveTensor):
        found = found.trigger_wait()  # type: ignore[no-untyped-call]
    return found


def shard_of(param: Any) -> list[tuple[int, int]] | None:
    """The range of each dimension that the local tensor of a DTensor holds.

    Returns:
        The first index and the number of indices of each dimension; None if they are no ranges.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh, sizes = param.device_mesh, param.device_mesh.shape
    over: list[list[int]] = [[] for _ in range(param.ndim)]  # dimensions of the mesh, in order
    for dim, placement in enumerate(param.placements):
        if isinstance(placement, Replicate):
            continue
        if not isinstance(placement, Shard | _StridedShard):
            return None
        over[placement.dim].append(dim)
    for entry in param._spec.shard_order or ():
        over[entry.tensor_dim] = list(entry.mesh_dims)
    ranges = []
    for dim, mesh_dims in enumerate(over):
        first, size = 0, param.shape[dim]
        strided = [i for i in mesh_dims if isinstance(param.placements[i], _StridedShard)]
        if strided:  # FSDP2 of a tensor that is sharded already: by the others, then by this one
            others = [i for i in mesh_dims if i not in strided]
            ways = math.prod(sizes[i] for i in others)
            if len(strided) > 1 or param.placements[strided[0]].split_factor != ways:
                return None
            mesh_dims = others + strided
        for i in mesh_dims:
            size, start = Shard.local_shard_size_and_offset(size, sizes[i], mesh.get_local_rank(i))
            first += start
        ranges.append((first, size))
    shape = tuple(size for _, size in ranges)
    return ranges if shape == tuple(local(param).shape) else None


def placed_like(param: Any, tensor: Tensor) -> Tensor:
    """A local tensor as a DTensor that is placed like a parameter, if this is one."""
    if not is_dtensor(param):
        return tensor
    spec = param._spec
    if spec.tensor_meta.dtype != tensor.dtype:
        spec = replace(spec, tensor_meta=spec.tensor_meta._replace(dtype=tensor.dtype))
    made: Tensor = type(param)(tensor, spec, requires_grad=False)
    return made


def are_placed_alike(a: Any, b: Any) -> bool:
    """Whether the local tensors of two DTensors of one shape hold the same elements."""
    ours, theirs = a._spec, b._spec
    return ours is theirs or (
        ours.mesh == theirs.mesh
        and ours.placements == theirs.placements
        and ours.shard_order == theirs.shard_order
    )


def redistribute(pairs: dict[Any, tuple[Any, Any]]) -> dict[Any, Any]:
    """Place DTensors like other ones of the same shapes and meshes.

    A collective operation: every process must call it with the same keys and tensors.

    Args:
        pairs: DTensors, each with the one that it is to be placed like. They are moved in the
            order of their keys.

    Raises:
        RuntimeError: torch cannot place one of them so.
    """
    # All of them are started before the first is waited for. detach() would forget the order of the
    # shards.
    moved = {
        key: tensor.redistribute(like.device_mesh, like.placements, async_op=True)
        for key, (tensor, like) in sorted(pairs.items(), key=lambda item: item[0])
    }
    for key, tensor in moved.items():
        like = pairs[key][1]
        if not are_placed_alike(tensor, like):  # redistribute() takes no order of the shards
            raise RuntimeError(f"cannot redistribute from {pairs[key][0]._spec} to {like._spec}")
    return moved


def check_alike(param: Any, tensor: Any, name: str) -> None:
    """Check that a tensor is a DTensor on the mesh of its parameter, or that neither is one.

    Raises:
        TypeError: Only one of them is a DTensor.
        ValueError: They lie on different meshes, or their local tensors have different shapes.
    """
    if is_dtensor(param) != is_dtensor(tensor):
        kind = "DTensor" if is_dtensor(param) else "plain tensor"
        raise TypeError(
            f"{name} is a {type(tensor).__name__}, expected a {kind} like its parameter"
        )
    if not is_dtensor(param):
        return
    if tensor.device_mesh != param.device_mesh:
        raise ValueError(f"{name} lies on {tensor.device_mesh}, expected {param.device_mesh}")
    shape, expected = tuple(local(tensor).shape), tuple(local(param).shape)
    if are_placed_alike(param, tensor) and shape != expected:
        raise ValueError(f"{name} has a local tensor of shape {shape}, expected {expected}")


def check_not_flat(param: Any, name: str) -> None:
    """Check that a parameter of an optimizer with flat buffers is no DTensor.

    Raises:
        RuntimeError: It is one.
    """
    if is_dtensor(param):
        raise RuntimeError(
            f"flatten=True cannot move {name} into a flat buffer: it is a DTensor, whose memory "
            "belongs to what shards it"
        )


def check_not_partial(param: Any, name: str) -> None:
    """Check that the values of a parameter are no terms of a sum that is still to be taken.

    Raises:
        ValueError: It is a DTensor with a partial placement.
    """
    if is_dtensor(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(f"{name} has placements {param.placements}, expected none that is partial")
