"""A Hugging Face checkpoint becomes a larger one: from safetensors to safetensors, a few rows at a time.

Neither model is ever in memory. The target is written beside its final name and renamed when everything in it, the
proof included, is as it should be; the source is only read.
"""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinfolk.cores import usable_cores
from kinfolk.errors import KinfolkError
from kinfolk.growth.claims import describe, what_breaks
from kinfolk.growth.configs import Changes, child_config, child_sizes, read_config
from kinfolk.growth.grow import Origin, origins_of
from kinfolk.growth.made import Made, make_all
from kinfolk.growth.names import Place, grown_names, place_of, tied_alias
from kinfolk.growth.rows import blocks
from kinfolk.growth.safetensors import FLOATS, Entry, Weights
from kinfolk.growth.safetensors_writer import Layout, WeightsWriter
from kinfolk.growth.sizes import Sizes, sizes_of_config
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator

Progress = Callable[[str, int, int], None]
"""Told what is done: the activity, bytes (or layers) so far, and of how many."""

_COPIED_ALONG = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)

_MAKE_ROOM = "free space there, or give another target"


@dataclass(frozen=True)
class Parent:
    """A checkpoint that can be grown: everything but the values is known to be in order."""

    folder: Path
    config: Any
    sizes: Sizes
    weights: Weights

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)


@dataclass(frozen=True)
class Job:
    """A growth that nothing is known to stand in the way of."""

    parent: Parent
    child: Sizes
    config: Any
    """The child's."""
    operator: Operator
    origins: Mapping[str, Origin]
    layout: Mapping[str, Layout]

    @property
    def description(self) -> str:
        return describe(self.operator, self.parent.sizes, self.child)

    @property
    def breaks(self) -> list[str]:
        """Why the child does not compute the parent's function; empty where it claims to."""
        return what_breaks(self.operator, self.parent.sizes, self.child, self.parent.architecture)

    @property
    def target_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.layout.values())


@contextmanager
def open_parent(folder: Path) -> Iterator[Parent]:
    """Open a checkpoint folder. KinfolkError for one that is damaged, incomplete, or of another model than it says."""
    if not folder.is_dir():
        raise KinfolkError("there is no such folder", where=str(folder), fix="give the folder of a checkpoint")
    config = read_config(folder)
    with Weights(folder) as weights:
        parent = Parent(folder, config, sizes_of_config(config), weights)
        _check_names(parent)
        yield parent


def prepare(parent: Parent, changes: Changes, operator: Operator, dtype: torch.dtype | None = None) -> Job:
    """Everything about a growth but the doing. KinfolkError for what cannot be grown."""
    architecture = parent.architecture
    child = child_sizes(parent.config, changes, operator)
    origins = dict(origins_of(list(parent.weights), architecture, parent.sizes, child, operator))
    layout = {}
    for name, origin in origins.items():
        entry = parent.weights[origin.name]
        _check_tensor(entry, origin)
        layout[name] = Layout(dtype or entry.dtype, origin.width.axes.child_size(entry.shape, origin.axes))
    embedding = stored_dtype(parent)
    return Job(
        parent, child, child_config(parent.config, child, operator, dtype or embedding), operator, origins, layout
    )


def stored_dtype(parent: Parent) -> torch.dtype:
    """The dtype that the parent is stored in: that of its largest tensor."""
    return max(parent.weights.values(), key=lambda entry: entry.bytes).dtype


def refuse_target(target: Path, source: Path, needed: int) -> None:
    """Raise KinfolkError where a target must not or cannot be written."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise KinfolkError("is there already", where=str(target), fix="delete it, or give another target")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise KinfolkError(
            "lies in the source, which is never touched", where=str(target), fix="give a folder elsewhere"
        )
    existing = next(folder for folder in target.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise KinfolkError(f"the target takes {needed:,} bytes, and {free:,} are free", fix=_MAKE_ROOM)


@contextmanager
def told_when_full() -> Iterator[None]:
    """KinfolkError where a disk is full, whatever was being written; to be entered around what cleans up."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KinfolkError("the disk is full; nothing was kept", fix=_MAKE_ROOM) from error
        raise


def write_weights(job: Job, folder: Path, progress: Progress = lambda what, done, total: None) -> None:
    """Write the child's safetensors files into `folder`, with as many threads as there are cores."""
    writer = WeightsWriter(folder, job.layout)
    tensors = {
        name: Made(layout, partial(job.origins[name].blocks, job.parent.weights)) for name, layout in job.layout.items()
    }
    try:
        make_all(tensors, writer.write, usable_cores(), lambda done: progress("growing", done, job.target_bytes))
        writer.close()
    finally:
        writer.abandon()


def copy_along(source: Path, target: Path) -> None:
    """Copy tokenizer, generation settings and licence."""
    for pattern in _COPIED_ALONG:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _check_names(parent: Parent) -> None:
    """Every parameter is there, once, in every layer and expert; a second name of a tied embedding agrees with it."""
    table, architecture, sizes = table_of(parent.architecture), parent.architecture, parent.sizes
    where = str(parent.folder)
    places: dict[str, Place] = {
        name: place_of(name, architecture) for name in grown_names(parent.weights, architecture)
    }
    by_layer: dict[int | None, set[tuple[str, int | None]]] = {}
    for name, place in places.items():
        if not parent.weights[name].dtype.is_floating_point:
            raise KinfolkError(
                f"{name} holds {parent.weights[name].dtype}, no floating-point numbers",
                where=where,
                fix="grow the checkpoint that was quantized, then quantize",
            )
        by_layer.setdefault(place.layer, set()).add((place.key, place.expert))
    every = set().union(*(keys for layer, keys in by_layer.items() if layer is not None))
    keys = {key for key, _ in every} | {key for key in table.layer if key.endswith(".weight")}
    experts = range(sizes.experts or 0)
    wanted = {(key, expert) for key in keys for expert in (experts if "{expert}" in key else (None,))}
    for layer in range(sizes.shape.num_hidden_layers):
        _refuse_missing(wanted - by_layer.get(layer, set()), where, f"layer {layer}")
    outside: set[tuple[str, int | None]] = {(name, None) for name in table.outside if _is_needed(name, parent)}
    _refuse_missing(outside - by_layer.get(None, set()), where, "the model")
    if sizes.shape.tie_word_embeddings:
        for name in places:
            original = tied_alias(name, architecture)
            if original is not None:
                _check_tie(parent, name, original)


def _is_needed(name: str, parent: Parent) -> bool:
    """Whether a parameter outside the layers cannot be missing."""
    table = table_of(parent.architecture)
    if tied_alias(name, parent.architecture):
        # GPT-NeoX has had two names for its head.
        heads = [head for head in table.outside if tied_alias(head, parent.architecture)]
        first = next((head for head in heads if head in parent.weights), heads[0])
        return not parent.sizes.shape.tie_word_embeddings and name == first
    return True


def _refuse_missing(missing: set[tuple[str, int | None]], where: str, whose: str) -> None:
    if missing:
        key, expert = min(missing, key=str)
        raise KinfolkError(
            f"{whose} lacks the tensor {key.format(expert=expert)}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            where=where,
            fix="copy the complete checkpoint, with the config.json that belongs to it",
        )


def _check_tie(parent: Parent, name: str, original: str) -> None:
    table = table_of(parent.architecture)
    stored = original if original in parent.weights else original.removeprefix(table.optional_prefix)
    one, other = parent.weights[name], parent.weights[stored]
    if one.shape != other.shape or not all(
        torch.equal(one.rows(*rows), other.rows(*rows)) for rows in blocks(one.shape)
    ):
        raise KinfolkError(
            f"{name} differs from {stored}, and config.json says that the embeddings are tied",
            where=str(parent.folder),
            fix="set tie_word_embeddings to false in its config.json",
        )


def _check_tensor(entry: Entry, origin: Origin) -> None:
    try:
        origin.width.axes.check(entry.shape, origin.axes, entry.name)
    except KinfolkError as error:
        raise KinfolkError(
            error.problem, where=str(entry.file.path), fix="restore the config.json that belongs to it"
        ) from error
    if str(entry.dtype).removeprefix("torch.") not in FLOATS:
        raise KinfolkError(
            f"{entry.name} holds {entry.dtype}", where=str(entry.file.path), fix=f"use {', '.join(FLOATS)}"
        )
