"""Training checkpoints: PyTorch DCP in safetensors files, one format for one process and for many.

A checkpoint of a plain process loads into a sharded run and back, and holds no pickle: tensors in safetensors, the
rest in state.json. Files are written into a folder beside and renamed, so a checkpoint exists whole or not at all.
"""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.train.engine import Engine
from kinfolk.train.optimizer import optimizer_tensors


@dataclass(frozen=True)
class Position:
    """Where training stands: steps done in this stage, sequences seen by the whole lineage, seconds of training."""

    step: int
    sequences: int
    seconds: float = 0.0


def tensors_of(model: nn.Module, optimizer: torch.optim.AdamW | None) -> dict[str, Tensor]:
    """Everything a checkpoint holds, under flat names; the tensors are the live ones."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if optimizer is not None:
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    return tensors


def save(folder: Path, tensors: dict[str, Tensor], position: Position, engine: Engine) -> Path:
    """Write a checkpoint `step-N` into `folder`, then drop the older ones; every process of the engine takes part."""
    target = folder / f"step-{position.step:08d}"
    unfinished = target.with_name(target.name + files.UNFINISHED)
    if engine.is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    engine.wait()
    contents = dict(tensors)
    contents["random.cpu"] = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DCP warns that it runs without a process group: meant so
        dcp_save(
            contents,
            storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
            no_dist=engine.world_size == 1,
        )
    if engine.is_main:
        state = {**asdict(position), "optimizer": any(name.startswith("optimizer.") for name in tensors)}
        state["files"] = {path.name: files.sha256(path) for path in sorted(unfinished.glob("*.safetensors"))}
        files.write_json(unfinished / "state.json", state)
        files.flush_directory(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        for older in checkpoints(folder)[:-1]:
            shutil.rmtree(older)
    engine.wait()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a stage's folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(files.UNFINISHED))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def position_of(checkpoint: Path) -> Position:
    """Where training stood; KinfolkError when the checkpoint's record is damaged."""
    state = _state(checkpoint)
    return Position(state["step"], state["sequences"], state["seconds"])


def has_optimizer(checkpoint: Path) -> bool:
    """Whether optimizer state was saved with the weights."""
    return bool(_state(checkpoint)["optimizer"])


def load(checkpoint: Path, tensors: dict[str, Tensor], distributed: bool) -> None:
    """Fill `tensors` in place, resharding as needed, and restore the random state.

    `distributed` says whether every process of the job takes part, or this one reads alone. Raises KinfolkError for a
    checkpoint that is damaged (its files are compared with the hashes taken when it was written).
    """
    for name, digest in _state(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file() or files.sha256(path) != digest:
            raise KinfolkError(
                "the file is missing or its bytes are not those that were written",
                where=str(path),
                fix=f"delete {checkpoint}, and the build goes on from what is before it",
            )
    contents = dict(tensors)
    contents["random.cpu"] = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp_load(contents, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=not distributed)
    torch.set_rng_state(contents["random.cpu"])


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / "state.json").read_text("utf-8"))
        if {"step", "sequences", "seconds", "optimizer", "files"} <= state.keys():
            return dict(state)
    except (OSError, ValueError, AttributeError):
        pass
    raise KinfolkError(
        "the checkpoint's state.json is missing or damaged",
        where=str(checkpoint),
        fix=f"delete {checkpoint}, and the build goes on from what is before it",
    )
