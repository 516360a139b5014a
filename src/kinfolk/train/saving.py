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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk import files
from kinfolk.family.recipe import Checkpoints
from kinfolk.train.checkpoint import NEWEST, Position, calling_dcp, tidy, write_state
from kinfolk.train.engine import Engine


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

    def write(unfinished: Path) -> Future[Any]:
        writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
        with calling_dcp():
            if in_background:
                started = async_save(contents, storage_writer=writer, process_group=engine.saving, no_dist=alone)
                assert isinstance(started, Future)
                return started
            dcp_save(contents, storage_writer=writer, no_dist=alone)
            return _done()

    has_optimizer = any(name.startswith("optimizer.") for name in tensors)
    return _begin(folder, write, position, has_optimizer, engine, kept, newest)


def begin_first(
    folder: Path, write: Callable[[Path], None], position: Position, has_optimizer: bool, engine: Engine
) -> Saving:
    """Begin a stage's first checkpoint from files that `write` puts into a folder, each process its own.

    Every process calls this, then `Saving.finish`; until then the files can be read in `Saving.unfinished`. Where one
    process cannot write, all of them stop.
    """

    def written(unfinished: Path) -> Future[Any]:
        engine.together(lambda: write(unfinished))
        return _done()

    return _begin(folder, written, position, has_optimizer, engine, NEWEST, 1)


def _begin(
    folder: Path,
    write: Callable[[Path], Future[Any]],
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
        writing = write(unfinished)
    except BaseException:
        discard()
        raise
    hashes = _hashed_after(writing, unfinished, engine)
    return Saving(target, unfinished, position, has_optimizer, kept, newest, engine, hashes, discard)


def _done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def _hashed_after(writing: Future[Any], folder: Path, engine: Engine) -> Future[dict[str, str]]:
    """The hashes of this process's files, taken as soon as they are written, by the thread that wrote them."""
    hashes: Future[dict[str, str]] = Future()
    # DCP counts the files of the processes from 1.
    mine = f"shard-{engine.rank + 1:05d}-*.safetensors"

    def take(written: Future[Any]) -> None:
        try:
            with calling_dcp():
                written.result()
            hashes.set_result({path.name: files.sha256(path) for path in sorted(folder.glob(mine))})
        except BaseException as error:
            hashes.set_exception(error)

    writing.add_done_callback(take)
    return hashes
