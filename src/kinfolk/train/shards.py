"""What this process holds of a tensor that several share."""

from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Split = tuple[DeviceMesh, int]
"""Processes in one dimension, and the dimension of a tensor that they have in parts."""


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor: all of it, or its shard."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The processes that hold a tensor together; None where this one holds all of it.

    An operation on several tensors at once, as fused optimizers have it, takes those of one mesh only.
    """
    mesh: DeviceMesh | None = tensor.device_mesh if isinstance(tensor, DTensor) else None
    return mesh


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
