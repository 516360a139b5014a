"""Grow a training state: from one checkpoint to the first of the next stage, each process a share of it.

No process holds a model. Each makes some of the child's tensors, weights and optimizer state, a few rows at a time
from the parent's files, by a division that the tensors' sizes decide. Which process makes a tensor makes no odds to it:
so many processes write what one writes. Then parent and child are run from their files and compared, each process on
some of the text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kinfolk.family.shapes import Shape
from kinfolk.growth.checkpoint import Progress
from kinfolk.growth.claims import claims_preservation, describe
from kinfolk.growth.grow import origins_of
from kinfolk.growth.made import Made, copied, held
from kinfolk.growth.optimizer import state_origins
from kinfolk.growth.rows import Stored
from kinfolk.growth.safetensors_writer import Layout
from kinfolk.growth.verify import Verification, compare_stored, joined
from kinfolk.plan.stages import Dynamics, Operator
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine
from kinfolk.train.optimizer import MOMENTS
from kinfolk.train.saving import Saving, begin_first
from kinfolk.train.state_files import saved_tensors, to_write_here, write_tensors


@dataclass(frozen=True)
class Growth:
    """What grows into what, and how."""

    architecture: str
    shapes: tuple[Shape, Shape]
    """The parent's and the child's."""
    configs: tuple[Any, Any]
    """Of transformers, of the same two."""
    operator: Operator
    dynamics: Dynamics

    @property
    def description(self) -> str:
        return describe(self.operator, *self.shapes)


def grown_tensors(state: Mapping[str, Stored], growth: Growth) -> dict[str, Made]:
    """The tensors of the child's first checkpoint, from those of the parent's last."""
    weights = _part(state, "model.")
    tensors = {}
    for name, origin in origins_of(list(weights), growth.architecture, *growth.shapes, growth.operator):
        source = weights[origin.name]
        layout = Layout(source.dtype, origin.width.axes.child_size(source.shape, origin.axes))
        tensors[f"model.{name}"] = Made(layout, partial(origin.blocks, weights))
    moments, counts = [_part(state, f"optimizer.{key}.") for key in MOMENTS], _part(state, "optimizer.step.")
    rules = state_origins(counts, growth.architecture, *growth.shapes, growth.operator, growth.dynamics)
    for name, rule in rules.items():
        tensors[f"optimizer.step.{name}"] = held(rule.steps(counts[rule.origin.name].whole()))
        for power, (key, values) in enumerate(zip(MOMENTS, moments, strict=True), 1):
            if rule.origin.name in values:  # Muon has the first only
                layout = Layout(values[rule.origin.name].dtype, tensors[f"model.{name}"].layout.shape)
                tensors[f"optimizer.{key}.{name}"] = Made(layout, partial(rule.moment, values, power))
    return tensors | {"random.cpu": copied(state["random.cpu"])}


def begin_copy(
    parent: Path, folder: Path, position: Position, with_optimizer: bool, engine: Engine, progress: Progress
) -> Saving:
    """Begin the first checkpoint of a stage that goes on with its parent's last state; every process calls this."""
    checkpoint.verify_together(parent, engine)
    kept = {
        name: copied(tensor)
        for name, tensor in saved_tensors(parent).items()
        if with_optimizer or not name.startswith("optimizer.")
    }
    return begin_written(to_write_here(kept, engine), folder, position, engine, _has_optimizer(kept), progress)


def begin_growth(
    parent: Path, folder: Path, position: Position, growth: Growth, text: Tensor, engine: Engine, progress: Progress
) -> tuple[Saving, Verification]:
    """Begin the first checkpoint of a stage in `folder` from the one that its parent ended with, and measure it.

    Every process calls this, and then finishes or discards it. `text` is (batch, time) of token ids. Raises
    KinfolkError where the parent's checkpoint is damaged; what `progress` raises ends the work in all processes.
    """
    checkpoint.verify_together(parent, engine)
    state = saved_tensors(parent)
    grown = grown_tensors(state, growth)
    saving = begin_written(to_write_here(grown, engine), folder, position, engine, _has_optimizer(grown), progress)
    try:
        verification = _verified(state, saved_tensors(saving.unfinished), growth, text, engine, progress)
    except BaseException:
        saving.discard()
        raise
    return saving, verification


def begin_written(
    mine: Mapping[str, Made],
    folder: Path,
    position: Position,
    engine: Engine,
    has_optimizer: bool,
    progress: Progress,
) -> Saving:
    """Begin a stage's first checkpoint, of which this process writes `mine`; every process calls this."""
    return begin_first(
        folder, lambda unfinished: write_tensors(unfinished, mine, engine, progress), position, has_optimizer, engine
    )


def _has_optimizer(tensors: Iterable[str]) -> bool:
    return any(name.startswith("optimizer.") for name in tensors)


def _verified(
    before: Mapping[str, Stored],
    after: Mapping[str, Stored],
    growth: Growth,
    text: Tensor,
    engine: Engine,
    progress: Progress,
) -> Verification:
    """Parent and child compared on the text, of which each process takes some rows."""
    rows = text[engine.rank :: engine.world_size]
    weights = _part(before, "model."), _part(after, "model.")
    compared = engine.together(lambda: compare_stored(growth.configs, weights, rows, progress) if len(rows) else None)
    parts = [(len(text[rank :: engine.world_size]), both) for rank, both in enumerate(compared) if both is not None]
    float32, float64 = (joined([(count, both[number]) for count, both in parts]) for number in (0, 1))
    claims = claims_preservation(growth.operator, *growth.shapes, growth.architecture)
    return Verification.of(growth.description, claims, float32, float64)


def _part(state: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
