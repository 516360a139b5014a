"""Safetensors files, read a few rows at a time (and written so, in `kinfolk.growth.safetensors_writer`).

The format is a length of 8 bytes, a header in JSON, and the tensors one after the other. The safetensors library maps
files into memory, where every page that was read counts as memory of the process, and it writes whole files; growth
must do neither. What the library checks about a header is checked here as well, with messages for people.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from kinfolk.checkpoint_folder import no_weights
from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Names of the dtypes that weights may have."""

INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
_COPY_AGAIN = "copy the file again from where it comes from"


class Readable(Protocol):
    """A file of which some numbers can be had."""

    @property
    def path(self) -> Path: ...

    def read(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers from byte `start` on."""
        ...


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: `kinfolk.growth.rows.Stored`."""

    file: Readable
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte, from the beginning of the file."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, in new memory."""
        row = math.prod(self.shape[1:])
        count, width = (stop - start) * row, self.dtype.itemsize
        return self.file.read(self.start + start * row * width, count, self.dtype).view(stop - start, *self.shape[1:])

    def whole(self) -> Tensor:
        """The tensor, in new memory."""
        return self.file.read(self.start, math.prod(self.shape), self.dtype).view(self.shape)


class OpenFile:
    """A file that is read by position, by several threads if need be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise KinfolkError(
                f"cannot be read: {error.strerror}", where=str(path), fix="make it readable, or copy it again"
            ) from error

    def read(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers from byte `start` on."""
        buffer = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        self._fill(buffer.numpy().data, start)
        return buffer.view(dtype)

    def read_bytes(self, start: int, count: int) -> bytes:
        """`count` bytes from byte `start` on."""
        buffer = bytearray(count)
        self._fill(memoryview(buffer), start)
        return bytes(buffer)

    def size(self) -> int:
        return os.fstat(self._handle).st_size

    def close(self) -> None:
        os.close(self._handle)

    def _fill(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            read = os.preadv(self._handle, [view[done:]], start + done)
            if not read:
                raise KinfolkError(f"the file ends at byte {start + done}", where=str(self.path), fix=_COPY_AGAIN)
            done += read


@dataclass(frozen=True)
class ClosedFile:
    """A file that is opened for every reading: thousands of them take no handle each."""

    path: Path

    def read(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers from byte `start` on."""
        with closing(OpenFile(self.path)) as file:
            return file.read(start, count, dtype)


class Weights(Mapping[str, Entry]):
    """The tensors of a checkpoint folder, in one safetensors file or in several with an index."""

    def __init__(self, folder: Path) -> None:
        """Reads headers only. Raises KinfolkError for files that are missing, truncated, damaged or no safetensors."""
        self._files: list[OpenFile] = []
        self._entries: dict[str, Entry] = {}
        try:
            for path, wanted in _shards(folder):
                file = OpenFile(path)
                self._files.append(file)
                entries, _ = read_header(file)
                for name in wanted - entries.keys():
                    raise KinfolkError(
                        f"lacks the tensor {name}, which {INDEX} says is in it", where=str(path), fix=_COPY_AGAIN
                    )
                for name in sorted(entries.keys() & self._entries.keys()):
                    raise KinfolkError(
                        f"holds {name}, and so does {self._entries[name].file.path.name}",
                        where=str(path),
                        fix="keep the files of one checkpoint only",
                    )
                self._entries |= entries
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def paths(self) -> list[Path]:
        """The files, in a fixed order."""
        return [file.path for file in self._files]

    def close(self) -> None:
        while self._files:
            self._files.pop().close()


def _shards(folder: Path) -> list[tuple[Path, set[str]]]:
    """The files of a checkpoint, each with the tensors that an index says are in it."""
    index = folder / INDEX
    if not index.is_file():
        single = folder / "model.safetensors"
        if single.is_file():
            return [(single, set())]
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise no_weights(folder)
        if len(found) > 1:
            raise KinfolkError(
                f"there are {len(found)} safetensors files and no {INDEX}", where=str(folder), fix="copy the index too"
            )
        return [(found[0], set())]
    try:
        weight_map = parse_json(index.read_bytes())["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            by_file.setdefault(file, set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KinfolkError("the index is damaged: no weight_map in it", where=str(index), fix=_COPY_AGAIN) from error
    for file in by_file:
        if not isinstance(file, str) or Path(file).name != file or len(file.encode("utf-8", "replace")) > 255:
            raise KinfolkError(f"{file!r} is no file of this folder", where=str(index), fix=_COPY_AGAIN)
        if not (folder / file).is_file():
            raise KinfolkError(
                "the file is missing, and the index names it", where=str(folder / file), fix="copy it there"
            )
    return [(folder / file, names) for file, names in sorted(by_file.items())]


def read_header(file: OpenFile) -> tuple[dict[str, Entry], dict[str, str]]:
    """A file's tensors, and what it says of itself. KinfolkError where it is damaged or no safetensors file."""
    where, size = str(file.path), file.size()
    length = int.from_bytes(file.read_bytes(0, 8), "little") if size >= 8 else size
    if size < 8 or length > _LONGEST_HEADER:
        raise KinfolkError("is no safetensors file: its header has no sensible length", where=where, fix=_COPY_AGAIN)
    if 8 + length > size:
        raise KinfolkError(
            f"is truncated in its header: {size:,} bytes of at least {8 + length:,}", where=where, fix=_COPY_AGAIN
        )
    try:
        header = parse_json(file.read_bytes(8, length))
        entries = {
            str(name): Entry(
                file, str(name), DTYPES.get(each["dtype"], torch.uint8), tuple(map(int, each["shape"])), 8 + length + at
            )
            for name, each in header.items()
            if name != "__metadata__"
            for at in (int(each["data_offsets"][0]),)
        }
        ends = {name: 8 + length + int(each["data_offsets"][1]) for name, each in header.items() if name in entries}
        about = dict(header.get("__metadata__") or {})
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise KinfolkError("is no safetensors file, or its header is damaged", where=where, fix=_COPY_AGAIN) from error
    at = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, ends[item[0]])):
        size_fits = header[name]["dtype"] not in DTYPES or ends[name] - at == entry.bytes
        if entry.start != at or ends[name] < at or not size_fits or min(entry.shape, default=0) < 0:
            raise KinfolkError(
                f"its header is damaged: {name} does not lie where it must", where=where, fix=_COPY_AGAIN
            )
        at = ends[name]
    if at > size:
        raise KinfolkError(f"is truncated: {size:,} bytes of {at:,}", where=where, fix=_COPY_AGAIN)
    if at < size:
        raise KinfolkError(f"has {size - at:,} bytes too many", where=where, fix=_COPY_AGAIN)
    return entries, about
