"""The tensors of training checkpoints, read and written a few rows at a time: no process need hold them all."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError, in_short
from kinfolk.growth.checkpoint import Progress
from kinfolk.growth.made import Made, make_all
from kinfolk.growth.rows import Stored
from kinfolk.growth.safetensors import ClosedFile, Entry, OpenFile, read_header
from kinfolk.growth.safetensors_writer import FileWriter
from kinfolk.json_text import parse_json
from kinfolk.train.checkpoint import refuse_incomplete
from kinfolk.train.engine import Engine
from kinfolk.train.state_writer import OFFSETS, shard_name


@dataclass(frozen=True)
class Part:
    """What one process has saved of a tensor."""

    first: tuple[int, ...]
    """Where it begins, along each dimension."""
    entry: Entry


class InParts:
    """A tensor in parts: `kinfolk.growth.rows.Stored`. The parts cover it, and do not overlap."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = sorted(parts, key=lambda part: part.first)
        self.dtype: torch.dtype = parts[0].entry.dtype
        ends = [[at + size for at, size in zip(part.first, part.entry.shape, strict=True)] for part in parts]
        self.shape: tuple[int, ...] = tuple(map(max, zip(*ends, strict=True)))
        # Parts of whole rows or of columns, of different heights: those that begin early enough to reach a row.
        self._starts = [part.first[0] for part in self._parts] if self.shape else []
        self._tallest = max(part.entry.shape[0] for part in parts) if self.shape else 0

    @property
    def numbers(self) -> int:
        """How many the parts hold; as many as the tensor has."""
        return sum(math.prod(part.entry.shape) for part in self._parts)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, in new memory."""
        if not self.shape:
            return self._parts[0].entry.rows(start, stop)
        within = slice(bisect_right(self._starts, start - self._tallest), bisect_left(self._starts, stop))
        rows = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for part in self._parts[within]:
            first, last = max(start, part.first[0]), min(stop, part.first[0] + part.entry.shape[0])
            if first < last:
                place = [slice(first - start, last - start)]
                place += [slice(at, at + size) for at, size in zip(part.first[1:], part.entry.shape[1:], strict=True)]
                rows[tuple(place)] = part.entry.rows(first - part.first[0], last - part.first[0])
        return rows

    def whole(self) -> Tensor:
        """The tensor, in new memory."""
        return self.rows(0, self.shape[0]) if self.shape else self._parts[0].entry.whole()


def saved_tensors(checkpoint: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint (or of one that is being written), by the names that it has for them.

    Reads headers only. KinfolkError where a file is missing that the checkpoint's record names, where one is no
    safetensors file, and where a part of a tensor is missing before its others. Without a record, which one that is
    being written does not have yet, nothing tells that the last parts of a tensor are missing.
    """
    refuse_incomplete(checkpoint)
    parts: dict[str, dict[tuple[int, ...], Part]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with closing(OpenFile(path)) as file:
            entries, about = read_header(file)
        offsets = _offsets(path, about)
        for name, entry in entries.items():
            first = offsets.get(name, (0,) * len(entry.shape))
            # Replicas save a part once; of what all of them save, any is right.
            parts.setdefault(name, {})[first] = Part(first, replace(entry, file=ClosedFile(path)))
    found = {name: InParts(list(each.values())) for name, each in sorted(parts.items())}
    for name, tensor in found.items():
        if tensor.numbers != math.prod(tensor.shape):
            raise KinfolkError(
                f"a part of {name} is missing", where=str(checkpoint), fix="put the checkpoint's other files there"
            )
    return dict(found)


def _offsets(path: Path, about: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Where tensors of a file begin in the whole, as DCP says of those that are in parts; others begin at 0."""
    try:
        told = parse_json(about.get(OFFSETS, "{}"))
        return {name: tuple(map(int, each["saved_offsets"])) for name, each in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KinfolkError(
            f"which parts of tensors it holds cannot be read: {in_short(error)}",
            where=str(path),
            fix="put back the file that was saved",
        ) from error


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Divide tensors of these sizes into so many shares of about equal size; a function of names and sizes alone.

    >>> shares({"a": 1, "b": 5, "c": 2, "d": 3}, 2)
    [['a', 'b'], ['c', 'd']]
    """
    totals = [0] * count
    found: list[set[str]] = [set() for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = totals.index(min(totals))
        totals[least] += sizes[name]
        found[least].add(name)
    return [[name for name in sizes if name in share] for share in found]


def to_write_here(tensors: Mapping[str, Made], engine: Engine) -> dict[str, Made]:
    """The tensors that this process is to write, when every process calls this."""
    sizes = {name: tensor.layout.bytes for name, tensor in tensors.items()}
    return {name: tensors[name] for name in shares(sizes, engine.world_size)[engine.rank]}


def write_tensors(folder: Path, tensors: Mapping[str, Made], engine: Engine, progress: Progress) -> None:
    """Make the tensors and write them into this process's file of a checkpoint; without any, there is no file.

    What `progress` raises stops the work.
    """
    if not tensors:
        return
    total = sum(tensor.layout.bytes for tensor in tensors.values())
    layout = {name: tensor.layout for name, tensor in tensors.items()}
    writer = FileWriter(folder / shard_name(engine.rank), layout)
    try:
        make_all(tensors, writer.write, engine.threads, lambda done: progress("growing", done, total))
        writer.close()
    finally:
        writer.abandon()
