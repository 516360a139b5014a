"""Safetensors files, written a few rows at a time."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinfolk import files
from kinfolk.growth.safetensors import DTYPES, INDEX

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Layout:
    """A tensor that is to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightsWriter:
    """New safetensors files of which every byte is known beforehand but for the values: headers first, then rows.

    Rows may be written in any order and by several threads.
    """

    def __init__(self, folder: Path, layout: Mapping[str, Layout], shard_bytes: int | None = None) -> None:
        """Creates the files in `folder`, with the tensors of `layout` in its order; `SHARD_BYTES` each by default."""
        self._layout = layout
        self._places: dict[str, tuple[int, int]] = {}
        self._handles: list[int] = []
        self._written = dict.fromkeys(layout, 0)
        codes = {kind: code for code, kind in DTYPES.items()}
        shards = _split(layout, shard_bytes or SHARD_BYTES)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            at = 0
            for name in names:
                tensor = layout[name]
                ends = [at, at + tensor.bytes]
                header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
                at += tensor.bytes
                weight_map[name] = file
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            handle = os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            self._handles.append(handle)
            self._write(handle, memoryview(len(text).to_bytes(8, "little") + text), 0)
            for name in names:
                self._places[name] = (handle, 8 + len(text) + header[name]["data_offsets"][0])
        if len(shards) > 1:
            total = sum(tensor.bytes for tensor in layout.values())
            files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def write(self, name: str, first_row: int, rows: Tensor) -> None:
        """Put rows of a tensor in their place, in the dtype of the file."""
        handle, start = self._places[name]
        tensor = self._layout[name]
        stored = rows.to(tensor.dtype).contiguous()
        row = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        self._write(handle, stored.view(-1).view(torch.uint8).numpy().data, start + first_row * row)
        self._written[name] += stored.numel()

    def close(self) -> None:
        """Raises ValueError when not every row was written once."""
        self.abandon()
        for name, tensor in self._layout.items():
            if self._written[name] != math.prod(tensor.shape):
                raise ValueError(f"{name} was written in part")

    def abandon(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _write(self, handle: int, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(handle, view[done:], start + done)


def _split(layout: Mapping[str, Layout], shard_bytes: int) -> list[list[str]]:
    """Names in order, as many to a file as fit into it, and one at least."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in layout.items():
        if shards[-1] and filled + tensor.bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.bytes
    return shards
