"""Training checkpoints: PyTorch DCP in safetensors files, one format for one process and for many.

A checkpoint of a plain process loads into a sharded run and back, and holds no pickle: tensors in safetensors, the
rest in state.json. Files are written into a folder beside and renamed, so a checkpoint exists whole or not at all.
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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Checkpoints
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


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Everything a checkpoint holds, under flat names; the tensors are the live ones."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if optimizer is not None:
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    return tensors


def save(
    folder: Path, tensors: dict[str, Tensor], position: Position, engine: Engine, kept: Checkpoints = NEWEST
) -> Path:
    """Write a checkpoint `step-N` into `folder`, then `tidy`; every process of the engine takes part.

    `folder` must not hold that step yet.
    """
    target = folder / f"step-{position.step:08d}"
    unfinished = target.with_name(target.name + files.UNFINISHED)

    def begin() -> None:
        tidy(folder, kept)
        unfinished.mkdir(parents=True)

    def finish() -> None:
        _write_state(unfinished, position, any(name.startswith("optimizer.") for name in tensors))
        files.flush_directory(unfinished)
        files.publish(unfinished, target)
        tidy(folder, kept)

    engine.on_main(begin)
    with _no_warning_of_one_process():
        dcp_save(
            tensors | {"random.cpu": torch.get_rng_state()},
            storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
            no_dist=engine.world_size == 1,
        )
    engine.on_main(finish)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a stage's folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(files.UNFINISHED))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def tidy(folder: Path, kept: Checkpoints) -> None:
    """Remove what a killed process left half-written, and every whole checkpoint that need not be kept.

    The newest is kept, and the last `kept.keep` of those at multiples of `kept.steps`.
    """
    whole, even = checkpoints(folder), spaced(folder, kept.steps)
    stays = {*whole[-1:], *even[max(0, len(even) - kept.keep) :]}
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
    for name, digest in _state(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file() or files.sha256(path) != digest:
            raise _damaged(path, "the file is missing or its bytes are not those that were written")


def load(checkpoint: Path, tensors: dict[str, Tensor], engine: Engine) -> None:
    """Fill `tensors` in place, resharding as needed, and restore the random state; every process takes part.

    Raises KinfolkError for a checkpoint that is damaged.
    """
    engine.on_main(lambda: verify(checkpoint))
    contents = tensors | {"random.cpu": torch.get_rng_state()}
    with _no_warning_of_one_process():
        dcp_load(contents, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=engine.world_size == 1)
    torch.set_rng_state(contents["random.cpu"])


def _write_state(checkpoint: Path, position: Position, optimizer: bool) -> None:
    state: dict[str, Any] = {**asdict(position), "optimizer": optimizer}
    state["files"] = {path.name: files.sha256(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    files.write_json(checkpoint / "state.json", state | {"sha256": _digest(state)})


def _state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text("utf-8"))
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
def _no_warning_of_one_process() -> Iterator[None]:
    """DCP warns when it runs without a process group; here it is meant to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
