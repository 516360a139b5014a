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


def stored_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in host memory as a safetensors file has them."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


class FileWriter:
    """A new safetensors file of which every byte is known beforehand but for the values: header first, then rows.

    Rows may be written in any order and by several threads.
    """

    def __init__(self, path: Path, layout: Mapping[str, Layout], about: Mapping[str, str] | None = None) -> None:
        """Creates the file, with the tensors of `layout` in its order; `about` goes into the header's metadata."""
        self._layout = layout
        self._written = dict.fromkeys(layout, 0)
        codes = {kind: code for code, kind in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(about or {})}}
        at = 0
        for name, tensor in layout.items():
            ends = [at, at + tensor.bytes]
            header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
            at += tensor.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        """The bytes before those of the tensors."""
        self._starts = {name: len(self.header) + header[name]["data_offsets"][0] for name in layout}
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._put(memoryview(self.header), 0)
        except BaseException:
            self.abandon()
            raise

    def write(self, name: str, first_row: int, rows: Tensor) -> None:
        """Put rows of a tensor in their place, in the dtype of the file."""
        tensor = self._layout[name]
        row = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        self._put(stored_bytes(rows.to(tensor.dtype)), self._starts[name] + first_row * row)
        self._written[name] += rows.numel()

    def flush(self) -> None:
        """Have the disk hold what was written."""
        assert self._handle is not None
        os.fsync(self._handle)

    def close(self) -> None:
        """Raises ValueError where a tensor got more or fewer numbers than it has."""
        self.abandon()
        for name, tensor in self._layout.items():
            if self._written[name] != math.prod(tensor.shape):
                raise ValueError(f"{name} was written in part")

    def abandon(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _put(self, view: memoryview, start: int) -> None:
        assert self._handle is not None
        done = 0
        while done < len(view):
            done += os.pwrite(self._handle, view[done:], start + done)


class WeightsWriter:
    """The safetensors files of a checkpoint folder, as many as its size asks for: `FileWriter`s and their index."""

    def __init__(self, folder: Path, layout: Mapping[str, Layout], shard_bytes: int | None = None) -> None:
        """Creates the files in `folder`, with the tensors of `layout` in its order; `SHARD_BYTES` each by default."""
        self._files: list[FileWriter] = []
        self._file_of: dict[str, FileWriter] = {}
        shards = _split(layout, shard_bytes or SHARD_BYTES)
        weight_map: dict[str, str] = {}
        try:
            for number, names in enumerate(shards):
                file = "model.safetensors"
                if len(shards) > 1:
                    file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
                writer = FileWriter(folder / file, {name: layout[name] for name in names})
                self._files.append(writer)
                self._file_of |= dict.fromkeys(names, writer)
                weight_map |= dict.fromkeys(names, file)
            if len(shards) > 1:
                total = sum(tensor.bytes for tensor in layout.values())
                files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        except BaseException:
            self.abandon()
            raise

    def write(self, name: str, first_row: int, rows: Tensor) -> None:
        """Put rows of a tensor in their place, in the dtype of the file."""
        self._file_of[name].write(name, first_row, rows)

    def close(self) -> None:
        """Raises ValueError where a tensor got more or fewer numbers than it has."""
        for file in self._files:
            file.close()

    def abandon(self) -> None:
        for file in self._files:
            file.abandon()


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
