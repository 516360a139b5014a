"""Training checkpoints: PyTorch DCP in safetensors files, one format for one process and for many.

A checkpoint of a plain process loads into a sharded run and back, and holds no pickle: tensors in safetensors, the
rest in state.json. `kinfolk.train.saving` writes them.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

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


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a stage's folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(files.UNFINISHED))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def set_aside_damaged(folder: Path, progress: files.Progress | None = None) -> list[KinfolkError]:
    """Rename the newest checkpoints that are damaged, until one is whole; returns what is wrong with each.

    They are then called damaged-step-N, count as none, and can be deleted. `progress` as of `files.sha256_each`.
    """
    found: list[KinfolkError] = []
    while (newest := latest(folder)) is not None:
        try:
            verify(newest, progress)
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


def verify(checkpoint: Path, progress: files.Progress | None = None) -> None:
    """Compare every file with the hash taken when it was written; KinfolkError naming the first that differs."""
    _refuse_damaged(checkpoint, _damaged_files(checkpoint, sorted(_state(checkpoint)["files"]), progress))


def refuse_incomplete(checkpoint: Path) -> None:
    """KinfolkError naming a file that the record of a checkpoint names and that is not there.

    Nothing is said of a checkpoint that has no record, as one that is being written.
    """
    if (checkpoint / "state.json").exists():
        names = sorted(_state(checkpoint)["files"])
        _refuse_damaged(checkpoint, [name for name in names if not (checkpoint / name).is_file()])


def verify_together(checkpoint: Path, engine: Engine) -> None:
    """`verify`, each process a share of the files; where one is damaged all stop, and the main one says which."""

    def read_record() -> None:
        _state(checkpoint)

    engine.on_main(read_record)  # where it is damaged, all stop here
    mine = sorted(_state(checkpoint)["files"])[engine.rank :: engine.world_size]
    damaged = sorted(name for part in engine.gather(_damaged_files(checkpoint, mine)) for name in part)
    engine.on_main(lambda: _refuse_damaged(checkpoint, damaged))


def _damaged_files(checkpoint: Path, names: list[str], progress: files.Progress | None = None) -> list[str]:
    there = [name for name in names if (checkpoint / name).is_file()]
    found = dict(zip(there, files.sha256_each([checkpoint / name for name in there], progress), strict=True))
    hashes = _state(checkpoint)["files"]
    return [name for name in names if found.get(name) != hashes[name]]


def _refuse_damaged(checkpoint: Path, names: list[str]) -> None:
    if names:
        raise _damaged(checkpoint / names[0], "the file is missing or its bytes are not those that were written")


def load(checkpoint: Path, tensors: dict[str, Tensor], engine: Engine) -> None:
    """Fill `tensors` in place, resharding as needed, and restore the random state; every process takes part.

    Raises KinfolkError for a checkpoint that is damaged.
    """
    verify_together(checkpoint, engine)
    contents = tensors | {"random.cpu": torch.get_rng_state()}
    read_tensors(checkpoint, contents, engine)
    torch.set_rng_state(contents["random.cpu"])


def read_tensors(folder: Path, tensors: dict[str, Tensor], engine: Engine) -> None:
    """Fill `tensors` in place from a folder's safetensors files, resharding as needed; every process takes part."""
    with calling_dcp():
        dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=engine.world_size == 1)


def write_state(checkpoint: Path, position: Position, optimizer: bool, hashes: dict[str, str]) -> None:
    """Write the record of a checkpoint that is otherwise written; `hashes` are those of its files, by name."""
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
def calling_dcp() -> Iterator[None]:
    """DCP warns when it runs without a process group, as it is meant to here, and wraps what went wrong by rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except CheckpointException as error:  # no Exception, which nobody expects of a full disk
            raise next(failure for failure, _ in error.failures.values()) from None
