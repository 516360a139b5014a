"""What this process holds of a tensor that several share."""

from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Split = tuple[DeviceMesh, int]
"""Processes in one dimension, and the dimension of a tensor that they have in parts."""

Sharing = tuple[DeviceMesh | None, tuple[bool, ...]]
"""A mesh of processes, and for each of its dimensions whether they have parts or the same."""


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor: all of it, or its shard."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held


def sharing_of(tensor: Tensor) -> Sharing:
    """Which processes hold a tensor together, and along which dimensions of their mesh it is split.

    Operations on several tensors at once, as fused optimizers have them, take those that are shared alike.
    """
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(not placement.is_replicate() for placement in tensor.placements)


def splits_of(tensor: Tensor) -> list[Split]:
    """The splits that lead from a whole tensor to what this process holds of it, each of a part of the one before.

    Tensor parallelism comes first and in even parts; FSDP2, whose dimension of the mesh lies before, splits the rest.
    """
    if not isinstance(tensor, DTensor):
        return []
    mesh, placements = tensor.device_mesh, tensor.placements
    lines = [mesh] if mesh.ndim == 1 else [mesh[name] for name in mesh.mesh_dim_names or ()]
    placed: list[Any] = list(zip(lines, placements, strict=True))
    return [(line, placement.dim) for line, placement in reversed(placed) if not placement.is_replicate()]
