"""Write training checkpoints, at once or in the background, from tensors or from files.

Files are written into a folder beside and renamed, so a checkpoint exists whole or not at all.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk import files
from kinfolk.family.recipe import Checkpoints
from kinfolk.train.checkpoint import NEWEST, Position, calling_dcp, tidy, write_state
from kinfolk.train.engine import Engine
from kinfolk.train.state_writer import StateWriter, shard_name


@dataclass(frozen=True)
class Saving:
    """A checkpoint that is being written."""

    target: Path
    unfinished: Path
    position: Position
    has_optimizer: bool
    kept: Checkpoints
    newest: int
    """How many of the newest there are afterwards."""
    engine: Engine
    hashes: Future[dict[str, str]]
    """Of the files that this process wrote, by name, once it has."""
    discard: Callable[[], None]
    """Removes what is there of it."""

    @property
    def is_written(self) -> bool:
        """Whether this process has written its part."""
        return self.hashes.done()

    def finish(self, first: Callable[[], None] = lambda: None) -> Path:
        """Wait for every process's part and give the checkpoint its name; every process calls this.

        The main process does `first` just before there is a checkpoint.
        """
        try:
            parts = self.engine.gather(self.hashes.result())
            hashes = {name: digest for part in parts for name, digest in part.items()}

            def publish() -> None:
                write_state(self.unfinished, self.position, self.has_optimizer, hashes)
                files.flush_directory(self.unfinished)
                first()
                files.publish(self.unfinished, self.target)
                tidy(self.target.parent, self.kept, self.newest)

            self.engine.on_main(publish)
        except BaseException:
            self.discard()
            raise
        return self.target


def save(
    folder: Path,
    tensors: dict[str, Tensor],
    position: Position,
    engine: Engine,
    kept: Checkpoints = NEWEST,
    newest: int = 1,
) -> Path:
    """Write a checkpoint `step-N` into `folder`, then `tidy`; every process of the engine takes part.

    `folder` must not hold that step yet. Never are there more than `newest` and 1, and what else is `kept`, at once.
    """
    return begin_save(folder, tensors, position, engine, kept, newest, in_background=False).finish()


def begin_save(
    folder: Path,
    tensors: dict[str, Tensor],
    position: Position,
    engine: Engine,
    kept: Checkpoints = NEWEST,
    newest: int = 1,
    *,
    in_background: bool,
) -> Saving:
    """Begin what `save` does; in the background it goes on from a copy in host memory, and the tensors may change.

    Every process calls this, then `Saving.finish`, after which there is a checkpoint.
    """
    contents = tensors | {"random.cpu": torch.get_rng_state()}
    alone = engine.world_size == 1

    def write(unfinished: Path) -> Future[dict[str, str]]:
        writer = StateWriter(unfinished, engine.rank)
        with calling_dcp():
            if in_background:
                started = async_save(contents, storage_writer=writer, process_group=engine.saving, no_dist=alone)
                assert isinstance(started, Future)
                return _hashes_after(started, writer)
            dcp_save(contents, storage_writer=writer, no_dist=alone)
            return _done(writer.hashes)

    has_optimizer = any(name.startswith("optimizer.") for name in tensors)
    return _begin(folder, write, position, has_optimizer, engine, kept, newest)


def begin_first(
    folder: Path, write: Callable[[Path], None], position: Position, has_optimizer: bool, engine: Engine
) -> Saving:
    """Begin a stage's first checkpoint from files that `write` puts into a folder, each process its own.

    Every process calls this, then `Saving.finish`; until then the files can be read in `Saving.unfinished`. Where one
    process cannot write, all of them stop.
    """

    def written(unfinished: Path) -> Future[dict[str, str]]:
        engine.together(lambda: write(unfinished))
        mine = unfinished / shard_name(engine.rank)
        return _done({mine.name: files.sha256(mine)} if mine.exists() else {})

    return _begin(folder, written, position, has_optimizer, engine, NEWEST, 1)


def _begin(
    folder: Path,
    write: Callable[[Path], Future[dict[str, str]]],
    position: Position,
    has_optimizer: bool,
    engine: Engine,
    kept: Checkpoints,
    newest: int,
) -> Saving:
    target = folder / f"step-{position.step:08d}"
    unfinished = target.with_name(target.name + files.UNFINISHED)

    def begin() -> None:
        tidy(folder, kept)
        unfinished.mkdir(parents=True)

    def discard() -> None:
        if engine.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)  # on a full disk, what is half-written is in the way

    try:
        engine.on_main(begin)
        hashes = write(unfinished)
    except BaseException:
        discard()
        raise
    return Saving(target, unfinished, position, has_optimizer, kept, newest, engine, hashes, discard)


def _done(hashes: dict[str, str]) -> Future[dict[str, str]]:
    future: Future[dict[str, str]] = Future()
    future.set_result(hashes)
    return future


def _hashes_after(saving: Future[Any], writer: StateWriter) -> Future[dict[str, str]]:
    """The hashes of this process's file as soon as a save in the background has ended."""
    hashes: Future[dict[str, str]] = Future()

    def take(saved: Future[Any]) -> None:
        try:
            with calling_dcp():
                saved.result()
            hashes.set_result(writer.hashes)
        except BaseException as error:
            hashes.set_exception(error)

    saving.add_done_callback(take)
    return hashes
