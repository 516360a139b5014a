"""Train one stage: a script of parts, from a checkpoint to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinfolk.data.loader import Reading, read, sequences_per_epoch
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.family.rate_transfer import Factors
from kinfolk.family.recipe import Checkpoints, Recipe
from kinfolk.growth.dynamics import StageRates
from kinfolk.plan.stages import Stage
from kinfolk.train.divergence import Watch
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.gradients import clip
from kinfolk.train.interruption import Interruption
from kinfolk.train.memory import accumulate_within_memory, memory_for, weights_fix
from kinfolk.train.monitor import Outlook, View
from kinfolk.train.objective import stage_loss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.rate import learning_rate
from kinfolk.train.resumable import Course, Resumable
from kinfolk.train.update import make_update

NEWEST_KEPT = 2
"""Checkpoints of a stage in training: should the newest be damaged, there is the one before it."""

HELD_OUT_SEQUENCES = 32
"""Sequences of the quick held-out loss that is logged during training."""


@dataclass(frozen=True)
class Method:
    """How a stage is trained, beside what its plan says."""

    recipe: Recipe
    context_length: int
    precision: Precision
    rates: StageRates | None = None
    """Of a grown model's coordinates, where they differ from the stage's."""
    factors: Mapping[str, Factors] | None = None
    """Of the parameters under rate transfer."""


@dataclass(frozen=True)
class Trained:
    """What a finished stage leaves behind besides its last checkpoint."""

    seconds: float
    """Wall time of training, over all processes that worked on the stage up to their last checkpoints."""
    checkpoint_seconds: float
    """Time that this process spent on saving."""
    epochs: float
    """Passes over the training data, counted over the whole lineage."""


def train_stage(
    stage: Stage,
    model: PreTrainedModel,
    store: TokenStore,
    method: Method,
    folder: Path,
    engine: Engine,
    view: View,
    interruption: Interruption,
    outlook: Outlook | None = None,
) -> Trained:
    """Train from the newest checkpoint in `folder`/checkpoints to the stage's last step; every process calls this.

    `model` supplies the architecture; its weights come from the checkpoint. The last checkpoint is always written.
    What `outlook` says of a held-out loss is recorded beside it.
    Raises Interrupted after saving when a stop was asked for, and DivergedError on a loss or gradient that is not
    finite, or a loss that stays worse than guessing, with the last good checkpoint kept.
    """
    assert stage.shape is not None
    recipe, context_length, precision = method.recipe, method.context_length, method.precision
    engine.use_attention(model, stage.shape, precision, context_length)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    objective = stage_loss(model, stage.objective, dtype, recipe.z_loss)
    with memory_for("the weights", stage.name, weights_fix(engine)):
        engine.distribute(objective, precision)
    optimizer = make_optimizer(model, recipe.optimizer, method.factors)
    update = make_update(model, optimizer, method.rates)
    course = Course(
        name=stage.name,
        steps=stage.steps,
        folder=folder,
        saving=recipe.checkpoints,
        kept=kept_checkpoints(stage, recipe, is_trained=True),
        kept_meanwhile=kept_checkpoints(stage, recipe, is_trained=False),
        remedy=f"lower recipe.peak_learning_rate (now {stage.rate.peak:g} at its peak), lengthen the warm-up, or set "
        "recipe.precision to float32, and build into another --run",
        spikes=recipe.spikes,
        loss_name=loss_name(stage),
        newest=NEWEST_KEPT,
    )
    watch = Watch(model.config.vocab_size)
    training = Resumable(course, model, optimizer, watch, engine, view, interruption)
    first = training.first

    batch_rows = stage.rows_per_step(context_length)
    micro = _micro_batch(recipe, context_length, engine)
    batch_sequences = batch_rows * stage.patch_size
    reading = Reading(
        context_length,
        stage.patch_size,
        stage.block,
        first=first.sequences - stage.part_at(first.step).before(batch_sequences),
        sequences=stage.batches * batch_sequences,
    )
    held_out = held_out_sample(store, context_length).to(engine.device)
    held_out_every = recipe.held_out_every_steps or max(1, stage.steps // 20)

    with training:
        while training.position.step < stage.steps:
            position = training.position
            part = stage.part_at(position.step)
            rate = learning_rate(stage.rate, part.begin, stage.batches, part.parts)
            rows, tokens = batch_rows // part.parts, stage.tokens_per_step // part.parts
            mine = rows_of_rank(rows, engine.data_rank, engine.data_parallel)
            first_row = part.before(batch_rows) + mine.start
            sequences = torch.from_numpy(read(store.train, reading, first_row, len(mine), recipe.seed))
            sums = accumulate_within_memory(objective, sequences, micro, tokens, precision, engine, stage.name)
            gradient_norm = clip(model, recipe.gradient_clip)
            warmed_up = part.begin >= stage.rate.warmup_steps
            mean_loss, mean_z_loss = training.agreed(sums, tokens, gradient_norm, warmed_up)
            if not training.went_back:
                with memory_for("the optimizer's state", stage.name, weights_fix(engine)):
                    update(rate, position.step)
            optimizer.zero_grad(set_to_none=True)
            training.advance(
                sequences=position.sequences + rows * stage.patch_size,
                positions=position.positions + rows * context_length,
                token_ready=stage.patch_size == 1,
            )

            position = training.position
            read_before, read_now = (tokens_read(stage, each.step) for each in (first, position))
            training.record(
                {
                    "tokens": read_now,
                    "epoch": reading.epochs(position.sequences, len(store.train)),
                    loss_name(stage): mean_loss,
                    **({"z_loss": mean_z_loss} if recipe.z_loss else {}),
                    "learning_rate": rate,
                    "gradient_norm": gradient_norm,
                    "tokens_per_second": (read_now - read_before) / (position.seconds - first.seconds),
                    "seconds": position.seconds,
                    **training.spike,
                }
            )
            if position.step % held_out_every == 0 or position.step == stage.steps:
                held_out_loss = quick_loss(objective, held_out, micro, precision, engine)
                training.check_held_out(held_out_loss)
                said = outlook(position.step, held_out_loss, position.seconds) if outlook and engine.is_main else {}
                training.record({"held_out_loss": held_out_loss, **said})
        training.finish()

    return Trained(
        seconds=training.seconds,
        checkpoint_seconds=training.seconds_of_saving,
        epochs=reading.epochs(training.position.sequences, len(store.train)),
    )


def kept_checkpoints(stage: Stage, recipe: Recipe, is_trained: bool) -> Checkpoints:
    """Which checkpoints of a stage are kept beside the newest: those that may be averaged, at a constant rate.

    Until it is trained, those too that a spike may go back to.
    """
    is_constant = stage.patch_size == 1 and stage.rate.decay_steps == 0
    keep = recipe.checkpoints.keep if is_constant else 0
    if recipe.spikes.action == "rollback" and not is_trained:
        keep = max(2, keep)
    return recipe.checkpoints.model_copy(update={"keep": keep})


def tokens_read(stage: Stage, steps: int) -> int:
    """Tokens that the first steps of a stage read."""
    return stage.part_at(steps).before(stage.tokens_per_step)


def loss_name(stage: Stage) -> str:
    """What a stage's training loss is called: that of patches is not to be compared with a next-token loss."""
    return "loss" if stage.patch_size == 1 else "patch_loss"


@torch.no_grad()
def quick_loss(objective: nn.Module, sequences: Tensor, micro: int, precision: Precision, engine: Engine) -> float:
    """Mean next-token loss in nats of sequences (batch, context + 1), also of a stage that trains on patches.

    Every process computes all of it.
    """
    objective.eval()
    total = 0.0
    with engine.autocast(precision):
        for part in torch.split(sequences, micro):
            total += objective(part).cross_entropy.item()
    objective.train()
    return total / (sequences.shape[0] * (sequences.shape[1] - 1))


def smallest_rows(stage: Stage, context_length: int) -> int:
    """Rows of the smallest step of a stage, of which every other has a multiple."""
    return stage.rows_per_step(context_length) // stage.part_at(0).parts


def rows_of_rank(rows_per_step: int, data_rank: int, data_parallel: int) -> range:
    """Which rows of a global step a process trains on, or a tensor group; KinfolkError if they do not divide evenly."""
    if rows_per_step % data_parallel:
        raise KinfolkError(
            f"a step of {rows_per_step} sequences does not divide among {data_parallel} processes (of those that "
            "--tensor-parallel groups, the groups)",
            where="recipe.tokens_per_step, and recipe.batch_warmup.start where there is one",
            fix=f"use a multiple of {data_parallel} sequences, or another number of processes",
        )
    share = rows_per_step // data_parallel
    return range(data_rank * share, (data_rank + 1) * share)


def _micro_batch(recipe: Recipe, context_length: int, engine: Engine) -> int:
    tokens = 1_024 if engine.device.type == "cpu" else 32_768
    return recipe.sequences_per_micro_batch or max(1, tokens // context_length)


def held_out_sample(store: TokenStore, context_length: int) -> Tensor:
    """Evenly spread windows of the held-out part, (sequences, context + 1)."""
    windows = sequences_per_epoch(len(store.held_out), context_length)
    count = min(HELD_OUT_SEQUENCES, windows)
    if count == 0:
        raise KinfolkError(
            f"the held-out part has {len(store.held_out)} tokens, less than one sequence of {context_length + 1}",
            where="data.held_out",
            fix="hold out more documents, or shorten model.context_length",
        )
    starts = [window * windows // count * context_length for window in range(count)]
    return torch.stack(
        [torch.from_numpy(store.held_out[begin : begin + context_length + 1].astype("int64")) for begin in starts]
    )
