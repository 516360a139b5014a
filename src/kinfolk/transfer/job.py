"""A training on demonstrations as a run directory: refused or begun, gone on with, finished; with its ledger."""

import copy
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kinfolk import files
from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import only_build_in
from kinfolk.build.provenance import command_line, machine, versions
from kinfolk.errors import KinfolkError
from kinfolk.family.load import first_difference
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.divergence import DivergedError
from kinfolk.train.engine import Engine, MainStopped, Precision, alone, resolve_precision, start_engine
from kinfolk.train.interruption import Interrupted, Interruption
from kinfolk.train.model import empty_model
from kinfolk.train.saving import save
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import TransferView
from kinfolk.transfer.training import Material, Trained, train_on_demonstrations

SETTINGS = "settings.json"
TRAINING = "training"
CACHE = "cache"
"""Folder of what may be computed again; it goes when the result is there."""
FINISHED = "finished"
"""Event of the ledger with the result."""


@dataclass(frozen=True)
class Prepared:
    """Everything that is loaded and found right before the run directory is touched."""

    name: str
    """Of what is trained, and of its folder in the run directory."""
    model: PreTrainedModel
    """What is trained, with its first weights, on the CPU."""
    frozen: tuple[PreTrainedModel, ...]
    """Models that are asked, and not trained."""
    material: Material
    objective: Callable[[Engine, Precision, Path, Ledger], nn.Module]
    """The module that is trained, with its frozen models on the device; may write into the run directory."""
    export: Callable[[PreTrainedModel, Trained, Engine, Precision, Path], dict[str, Any]]
    """Given the best weights, write the result's folder; returns what the ledger says of it."""


def carry_out(
    settings: Settings,
    document: dict[str, Any],
    prepare: Callable[[], Prepared],
    folder: Path,
    view: TransferView,
) -> dict[str, Any]:
    """Train in the run directory `folder`, or go on there; returns the ledger's record of the result.

    `document` is what the run is of: another one is refused. Under torchrun every process calls this. Raises
    KinfolkError, before anything is written, for what the user can mend, and Interrupted after saving when a stop was
    asked for; the same call goes on from there.
    """
    began = time.monotonic()
    with start_engine() as engine, ExitStack() as held:
        interruption = held.enter_context(Interruption(second_stops=engine.world_size == 1).watched())
        if not engine.is_main:
            held.enter_context(interruption.deferred())
        engine.on_main(lambda: _check_folder(folder, document))
        ledger = Ledger(folder / "ledger.jsonl")
        found = ledger.events(FINISHED)
        if found and (folder / found[-1]["path"]).is_dir():
            view.say(f"{folder}  is finished; there is nothing to do")
            return found[-1]
        if settings.demonstrations_per_step % engine.world_size:
            raise KinfolkError(
                f"{settings.demonstrations_per_step} demonstrations do not divide among {engine.world_size} processes",
                where="--batch",
                fix=f"use a multiple of {engine.world_size}",
            )
        prepared = prepare()
        precision = resolve_precision(settings.precision, engine.device)
        engine.on_main(lambda: _begin(prepared, document, folder, ledger, engine, precision, view, held))
        trained = _train(prepared, settings, precision, engine, folder, ledger, view, interruption)
        engine.on_main(lambda: _finish(prepared, trained, precision, engine, folder, ledger, began))
        return ledger.events(FINISHED)[-1]


def _check_folder(folder: Path, document: dict[str, Any]) -> None:
    """Refuse a folder that holds something else."""
    record = folder / SETTINGS
    if not record.exists():
        # What a process left that was killed before it wrote its first record.
        strange = [path.name for path in folder.iterdir() if path.name not in ("lock",)] if folder.is_dir() else []
        if folder.exists() and (strange or not folder.is_dir()):
            raise KinfolkError("there is something else already", where=str(folder), fix="give a new --run")
        return
    difference = first_difference(record.read_text("utf-8"), json.dumps(document))
    if difference:
        raise KinfolkError(
            f"this run directory was begun with other settings: {difference}",
            where=str(folder),
            fix="give the same options and files, or another --run",
        )


def _begin(
    prepared: Prepared,
    document: dict[str, Any],
    folder: Path,
    ledger: Ledger,
    engine: Engine,
    precision: Precision,
    view: TransferView,
    held: ExitStack,
) -> None:
    """Take the run directory, and see to it that it has a checkpoint to train from."""
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(only_build_in(folder))
    if not (folder / SETTINGS).exists():
        files.write_json(folder / SETTINGS, document)
    ledger.append("started", command=command_line(), versions=versions(), machine=machine(engine))
    saves = folder / TRAINING / "checkpoints"
    checkpoint.tidy(saves, checkpoint.NEWEST)
    saved = checkpoint.latest(saves)
    if saved is not None:
        step = checkpoint.position_of(saved).step
        ledger.append("training_resumed", step=step)
        view.say(f"{prepared.name}  goes on from step {step}")
        return
    material = prepared.material
    ledger.append(
        "training_started",
        precision=precision,
        train=material.train.counts() | {"sha256": material.train.digest()},
        held_out=material.held_out.counts() | {"sha256": material.held_out.digest()},
    )
    save(saves, checkpoint.tensors_of(prepared.model, None), Position(0, 0), alone())


def _train(
    prepared: Prepared,
    settings: Settings,
    precision: Precision,
    engine: Engine,
    folder: Path,
    ledger: Ledger,
    view: TransferView,
    interruption: Interruption,
) -> Trained:
    configs: list[Any] = [model.config.get_text_config(decoder=True) for model in (prepared.model, *prepared.frozen)]
    engine.use_threads(max(configs, key=lambda config: config.hidden_size))
    objective = prepared.objective(engine, precision, folder, ledger)
    engine.distribute(objective, precision)
    try:
        return train_on_demonstrations(
            prepared.name,
            objective,
            prepared.material,
            settings,
            precision,
            engine,
            folder / TRAINING,
            view,
            interruption,
        )
    except Interrupted:
        if engine.is_main:
            saved = checkpoint.checkpoints(folder / TRAINING / "checkpoints")[-1]
            ledger.append("interrupted", step=checkpoint.position_of(saved).step)
        raise
    except DivergedError as diverged:
        fault, step = diverged.fault, diverged.step
        engine.on_main(lambda: ledger.append("diverged", step=step, fault=fault))
        raise diverged if engine.is_main else MainStopped from None


def _finish(
    prepared: Prepared,
    trained: Trained,
    precision: Precision,
    engine: Engine,
    folder: Path,
    ledger: Ledger,
    began: float,
) -> None:
    """Write the result of the best weights, and then the ledger's last line."""
    model = empty_model(copy.deepcopy(prepared.model.config))
    model.generation_config = prepared.model.generation_config
    saved = checkpoint.latest(folder / TRAINING / "best")
    assert saved is not None and checkpoint.step_of(saved) == trained.best_step
    checkpoint.load(saved, checkpoint.tensors_of(model, None), alone())
    found = prepared.export(model, trained, engine, precision, folder / prepared.name)
    shutil.rmtree(folder / CACHE, ignore_errors=True)
    ledger.append(
        FINISHED, path=prepared.name, **asdict(trained), **found, seconds_of_this_process=time.monotonic() - began
    )
