"""Writes what DCP plans for a process into one safetensors file, from the tensors themselves, and hashes it on the way.

DCP's own writer of safetensors makes the whole file in memory first, a second copy of all that a process holds, and
its hash would want the file read again: together twice the time of this (docs/results.md, section 10).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from kinfolk.growth.safetensors_writer import FileWriter, Layout, stored_bytes

OFFSETS = "DCP_SHARDING_INFO"
"""Under this name a file's header says where its tensors begin in whole ones, as DCP's reader of safetensors asks."""


def shard_name(rank: int) -> str:
    """The file of a process's tensors in a checkpoint, named as DCP names it."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


class StateWriter(StorageWriter):
    """Storage for one DCP save of tensors: a folder that exists, in which each process writes one file at most."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / shard_name(rank)
        self.hashes: dict[str, str] = {}
        """SHA-256 of the file by its name, once it is written; empty where the process has nothing to write."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors of a plan, largest dtypes first so that each is aligned; flushed when this returns."""
        items = sorted(plan.items, key=lambda item: (-_layout(item).dtype.itemsize, item.index.fqn))
        if items:
            self.hashes[self._path.name] = _write(self._path, items, planner)
        written: Future[list[WriteResult]] = Future()
        written.set_result([WriteResult(item.index, _layout(item).bytes, self._path.name) for item in items])
        return written

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *arguments: Any, **named: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing is left to do: the headers of the files say all that a reader needs."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _write(path: Path, items: list[WriteItem], planner: SavePlanner) -> str:
    """Write and flush the file; returns its SHA-256."""
    offsets = {item.index.fqn: {"saved_offsets": list(_tensor_data(item).chunk.offsets)} for item in items}
    writer = FileWriter(path, {item.index.fqn: _layout(item) for item in items}, {OFFSETS: json.dumps(offsets)})
    try:
        digest = hashlib.sha256(writer.header)
        for item in items:
            tensor: Any = planner.resolve_data(item)
            numbers = tensor.cpu().contiguous()
            writer.write(item.index.fqn, 0, numbers)
            digest.update(stored_bytes(numbers))
        writer.flush()
        writer.close()
    finally:
        writer.abandon()
    return digest.hexdigest()


def _layout(item: WriteItem) -> Layout:
    return Layout(_tensor_data(item).properties.dtype, tuple(_tensor_data(item).chunk.sizes))


def _tensor_data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return item.tensor_data
