"""Training checkpoints: PyTorch DCP in safetensors files, one format for one process and for many.

A checkpoint of a plain process loads into a sharded run and back, and holds no pickle: tensors in safetensors, the
rest in state.json. Files are written into a folder beside and renamed, so a checkpoint exists whole or not at all.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Checkpoints
from kinfolk.json_text import parse_json
from kinfolk.train.engine import Engine
from kinfolk.train.optimizer import optimizer_tensors

NEWEST = Checkpoints()
"""Keeps the newest checkpoint only."""


@dataclass(frozen=True)
class Position:
    """Where training stands."""

    step: int
    """Steps done in this stage."""
    sequences: int
    """Sequences of context length that the lineage has gone through in the stage's data: the cursor in them."""
    seconds: float = 0.0
    """Time of training in this stage."""
    positions: int = 0
    """Positions that the whole lineage has computed; less than its tokens where patches were read."""
    patch_size: int = 1
    """Tokens of a position in this stage."""
    token_ready: bool = True
    """Whether the weights are a language model: false since patches were read, until tokens are read again."""
    rollbacks: int = 0
    """Spikes of this stage that it went back for."""


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Everything a checkpoint holds, under flat names; the tensors are the live ones."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if optimizer is not None:
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    return tensors


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
                _write_state(self.unfinished, self.position, self.has_optimizer, hashes)
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
        with _called_by_one_or_many():
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
            with _called_by_one_or_many():
                written.result()
            hashes.set_result({path.name: files.sha256(path) for path in sorted(folder.glob(mine))})
        except BaseException as error:
            hashes.set_exception(error)

    writing.add_done_callback(take)
    return hashes


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a stage's folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(files.UNFINISHED))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def set_aside_damaged(folder: Path) -> list[KinfolkError]:
    """Rename the newest checkpoints that are damaged, until one is whole; returns what is wrong with each.

    They are then called damaged-step-N, count as none, and can be deleted.
    """
    found: list[KinfolkError] = []
    while (newest := latest(folder)) is not None:
        try:
            verify(newest)
            break
        except KinfolkError as error:
            aside = newest.with_name(f"damaged-{newest.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newest.rename(aside)
            found.append(error)
    return found


def tidy(folder: Path, kept: Checkpoints, newest: int = 1) -> None:
    """Remove what a killed process left half-written, and every whole checkpoint that need not be kept.

    The `newest` so many are kept, and the last `kept.keep` of those at multiples of `kept.steps`.
    """
    whole, even = checkpoints(folder), spaced(folder, kept.steps)
    stays = {*whole[-newest:], *even[max(0, len(even) - kept.keep) :]}
    for leftover in [*folder.glob("step-*" + files.UNFINISHED), *(path for path in whole if path not in stays)]:
        shutil.rmtree(leftover)


def spaced(folder: Path, steps: int | None) -> list[Path]:
    """The whole checkpoints at multiples of so many steps, oldest first; none without a number."""
    return [path for path in checkpoints(folder) if steps and step_of(path) and step_of(path) % steps == 0]


def step_of(checkpoint: Path) -> int:
    """The step that a whole checkpoint was taken at, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def position_of(checkpoint: Path) -> Position:
    """Where training stood; KinfolkError when the checkpoint's record is damaged."""
    state = _state(checkpoint)
    return Position(**{field.name: state[field.name] for field in fields(Position) if field.name in state})


def has_optimizer(checkpoint: Path) -> bool:
    """Whether optimizer state was saved with the weights."""
    return bool(_state(checkpoint)["optimizer"])


def verify(checkpoint: Path) -> None:
    """Compare every file with the hash taken when it was written; KinfolkError naming the first that differs."""
    _refuse_damaged(checkpoint, _damaged_files(checkpoint, sorted(_state(checkpoint)["files"])))


def verify_together(checkpoint: Path, engine: Engine) -> None:
    """`verify`, each process a share of the files; where one is damaged all stop, and the main one says which."""

    def read_record() -> None:
        _state(checkpoint)

    engine.on_main(read_record)  # where it is damaged, all stop here
    mine = sorted(_state(checkpoint)["files"])[engine.rank :: engine.world_size]
    damaged = sorted(name for part in engine.gather(_damaged_files(checkpoint, mine)) for name in part)
    engine.on_main(lambda: _refuse_damaged(checkpoint, damaged))


def _damaged_files(checkpoint: Path, names: list[str]) -> list[str]:
    hashes = _state(checkpoint)["files"]
    paths = {name: checkpoint / name for name in names}
    return [name for name, path in paths.items() if not path.is_file() or files.sha256(path) != hashes[name]]


def _refuse_damaged(checkpoint: Path, names: list[str]) -> None:
    if names:
        raise _damaged(checkpoint / names[0], "the file is missing or its bytes are not those that were written")


def load(checkpoint: Path, tensors: dict[str, Tensor], engine: Engine) -> None:
    """Fill `tensors` in place, resharding as needed, and restore the random state; every process takes part.

    Raises KinfolkError for a checkpoint that is damaged.
    """
    verify_together(checkpoint, engine)
    contents = tensors | {"random.cpu": torch.get_rng_state()}
    with _called_by_one_or_many():
        dcp_load(contents, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=engine.world_size == 1)
    torch.set_rng_state(contents["random.cpu"])


def _write_state(checkpoint: Path, position: Position, optimizer: bool, hashes: dict[str, str]) -> None:
    state: dict[str, Any] = {**asdict(position), "optimizer": optimizer, "files": dict(sorted(hashes.items()))}
    files.write_json(checkpoint / "state.json", state | {"sha256": _digest(state)})


def _state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "state.json"
    try:
        state = parse_json(path.read_text("utf-8"))
        if isinstance(state, dict) and state.pop("sha256", None) == _digest(state):
            return state
    except (OSError, ValueError):
        pass
    raise _damaged(path, "the checkpoint's record is missing or is not what was written")


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of a record's contents, however they are laid out as JSON."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, problem: str) -> KinfolkError:
    return KinfolkError(
        problem, where=str(path), fix=f"delete {path.parent}, and the build goes on from what is before it"
    )


@contextmanager
def _called_by_one_or_many() -> Iterator[None]:
    """DCP warns when it runs without a process group, as it is meant to here, and wraps what went wrong by rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except CheckpointException as error:  # no Exception, which nobody expects of a full disk
            raise next(failure for failure, _ in error.failures.values()) from None
