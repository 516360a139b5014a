"""Models taken out of a run before their member is finished: a stage's newest state, or the mean of several.

Averages of spaced checkpoints along a constant learning rate do much of what its decay would do, for nothing: LAWA
(arXiv 2306.03241) takes the plain mean of the last few, WSM (arXiv 2507.17634) weights that stand for a decay's shape.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kinfolk.build.card_results import score_sentence, score_table, scores
from kinfolk.build.held_out import held_out_score
from kinfolk.build.material import hub_datasets, material_part
from kinfolk.build.member_card import versions_of
from kinfolk.build.members import export_member
from kinfolk.build.origin import load_stage_model, stage_config
from kinfolk.build.run import Run, data_counts, open_run
from kinfolk.card.card import Card, Facts, Part, Table, load_code, render
from kinfolk.data.versions import joined
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family
from kinfolk.plan.stages import DecayShape, Stage
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone, single_engine
from kinfolk.train.model import check_token_ready, empty_model, load_parameters
from kinfolk.train.rate import remaining

RECORD = "snapshot.json"
"""File that says of a folder that its model was taken out of an unfinished training."""

PATCHES = ", which is at patch level: these weights are no language model yet"
"""What the card of a forced export says."""


@dataclass(frozen=True)
class Snapshot:
    """A model that was written to a folder, and what went into it."""

    stage: str
    steps: tuple[int, ...]
    weights: tuple[float, ...]
    folder: Path
    held_out: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "steps": list(self.steps),
            "weights": list(self.weights),
            "path": str(self.folder),
            "held_out": self.held_out,
        }


def open_existing(folder: Path) -> Run:
    """The run in a folder that `kinfolk build` began; KinfolkError where there is none."""
    if not (folder / "family.yaml").is_file():
        raise KinfolkError("no build was begun here", where=str(folder), fix="give a run directory, as runs/NAME")
    return open_run(load_family(str(folder / "family.yaml")), folder)


def export_stage(folder: Path, stage: str, output: Path | None, force: bool) -> Snapshot:
    """Write the newest state of a stage as a Hugging Face checkpoint, in RUN/exports/STAGE by default.

    KinfolkError for weights that were trained on patches last, unless forced: then their config says so.
    """
    run = open_existing(folder)
    which = _stage(run, stage)
    model = load_stage_model(which, run.family, run.store, run.stages, force)
    saved = checkpoint.latest(run.checkpoints(stage))
    assert saved is not None
    chosen = (checkpoint.step_of(saved),)
    return _write(run, which, model, chosen, (1.0,), output or folder / "exports" / stage)


def average_stage(folder: Path, stage: str | None, last: int, decay: DecayShape, output: Path | None) -> Snapshot:
    """Average the last evenly spaced checkpoints of a stage, in RUN/averages/STAGE by default.

    Without a stage, of the last one in the plan that has several. KinfolkError where there are too few, and for a
    stage at patch level.
    """
    run = open_existing(folder)
    which = _stage(run, stage) if stage is not None else _last_averageable(run)
    check_token_ready(which.patch_size == 1, f"stage {which.name}")
    saved = checkpoint.spaced(run.checkpoints(which.name), run.family.recipe.checkpoints.steps)[-last:]
    if len(saved) < 2:
        raise _too_few(run, which.name, len(saved))
    weights = averaging_weights(len(saved), decay)
    model = empty_model(stage_config(which, run.family, run.store))
    means = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in model.named_parameters()}
    for path, weight in zip(saved, weights, strict=True):
        check_token_ready(checkpoint.position_of(path).token_ready, str(path))
        checkpoint.load(path, checkpoint.tensors_of(model, None), alone())
        for name, parameter in model.named_parameters():
            means[name] += weight * parameter.detach().double()
    load_parameters(model, means)
    steps = tuple(checkpoint.step_of(path) for path in saved)
    return _write(run, which, model, steps, tuple(weights), output or folder / "averages" / which.name)


def averaging_weights(count: int, decay: DecayShape) -> list[float]:
    """Weights of `count` spaced checkpoints, oldest first, that stand for a decay over the time between them.

    To first order, decaying the learning rate by w_i in the interval before checkpoint i gives the mean of the
    checkpoints with weights c_i = w_i - w_(i+1), where w_0 = 1 and w_count = 0. A linear decay is the plain mean.

    >>> averaging_weights(4, "linear")
    [0.25, 0.25, 0.25, 0.25]
    """
    left = [remaining(decay, place / count) for place in range(count)] + [0.0]
    return [now - then for now, then in itertools.pairwise(left)]


def _stage(run: Run, name: str) -> Stage:
    names = [stage.name for stage in run.plan.stages]
    if name not in names:
        raise KinfolkError(
            f"the plan has no stage {name!r}", where=str(run.folder), fix=f"use one of {', '.join(names)}"
        )
    return run.plan.stage(name)


def _last_averageable(run: Run) -> Stage:
    steps = run.family.recipe.checkpoints.steps
    found = [stage for stage in run.plan.stages if len(checkpoint.spaced(run.checkpoints(stage.name), steps)) > 1]
    if not found:
        raise _too_few(run, "any stage", 0)
    return found[-1]


def _too_few(run: Run, stage: str, count: int) -> KinfolkError:
    return KinfolkError(
        f"there are {count} checkpoints of {stage} at even steps, and an average needs two or more",
        where=str(run.stages),
        fix="set recipe.checkpoints.steps and .keep before the build; only stages at a constant rate keep several",
    )


def _write(
    run: Run, stage: Stage, model: PreTrainedModel, steps: tuple[int, ...], weights: tuple[float, ...], target: Path
) -> Snapshot:
    """Measure the model on the run's held-out documents and write it; nothing that is not ours is overwritten."""
    if target.exists() and not (target / "config.json").is_file():
        raise KinfolkError("there is something else here", where=str(target), fix="choose another --output")
    engine = single_engine()
    engine.place(model)
    held_out = held_out_score(run, run.store, model, engine)
    alone().place(model)
    record = {"kind": "snapshot", "stage": stage.name, "steps": list(steps), "weights": list(weights)}
    card = render(_card(run, stage, steps, weights, held_out))
    export_member(target, model, run.tokenizer, card, {RECORD: record | {"held_out": held_out}})
    return Snapshot(stage.name, steps, weights, target, held_out)


def _card(run: Run, stage: Stage, steps: tuple[int, ...], weights: tuple[float, ...], held_out: dict[str, Any]) -> Card:
    patches = PATCHES if stage.patch_size > 1 else ""
    stated, kind = run.family.card, "the mean of checkpoints of" if len(steps) > 1 else "taken from"
    shares = tuple((f"{step:,}", f"{weight:.4f}") for step, weight in zip(steps, weights, strict=True))
    versions = versions_of(run.plan, stage)
    counts = data_counts(joined(run.stores, versions))
    return Card(
        title=f"{stage.name}, unfinished",
        summary=f"An unfinished model, {kind} the training of stage *{stage.name}* of the family "
        f"**{run.family.name}**{patches}.",
        tags=("kinfolk", run.family.model.architecture),
        facts=Facts(stated.license, stated.license_name, stated.license_link, tuple(stated.languages)),
        datasets=hub_datasets(run.family, versions),
        measured=scores(run.family, held_out),
        results=Part(score_sentence(held_out), (score_table(held_out),)),
        lineage=Part(tables=(Table(("checkpoint at step", "weight"), shares),)),
        data=material_part(run.family, versions, run.folder / "data", counts),
        limits=("Training was not over, and the learning rate had not decayed: the finished member is better.",),
        usage=load_code(None),
        built=Part(f"`kinfolk {'average' if len(steps) > 1 else 'export'}` on a run directory of `kinfolk build`."),
    )
