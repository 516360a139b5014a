"""Train one stage: a script of parts, from a checkpoint to the next."""

import math
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
from kinfolk.train import checkpoint
from kinfolk.train.divergence import DivergedError, Watch
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.interruption import Interrupted, Interruption
from kinfolk.train.monitor import Monitor, Outlook, View
from kinfolk.train.objective import stage_loss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.rate import learning_rate
from kinfolk.train.saving import SavingClock
from kinfolk.train.update import make_update

HELD_OUT_SEQUENCES = 32
"""Sequences of the quick held-out loss that is logged during training."""


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
    recipe: Recipe,
    context_length: int,
    precision: Precision,
    engine: Engine,
    folder: Path,
    view: View,
    interruption: Interruption,
    rates: StageRates | None = None,
    factors: Mapping[str, Factors] | None = None,
    outlook: Outlook | None = None,
) -> Trained:
    """Train from the newest checkpoint in `folder`/checkpoints to the stage's last step; every process calls this.

    `model` supplies the architecture; its weights come from the checkpoint. The last checkpoint is always written.
    `rates` are those of a grown model's coordinates, where they differ from the stage's, and `factors` those of its
    parameters under rate transfer. What `outlook` says of a held-out loss is recorded beside it.
    Raises Interrupted after saving when a stop was asked for, and DivergedError on a loss or gradient that is not
    finite, or a loss that stays worse than guessing, with the last good checkpoint kept.
    """
    assert stage.shape is not None
    engine.use_threads(stage.shape)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    objective = stage_loss(model, stage.objective, dtype, recipe.z_loss)
    engine.distribute(objective)
    optimizer = make_optimizer(model, recipe.optimizer, factors)
    update = make_update(model, optimizer, rates)
    saves = folder / "checkpoints"
    kept = checkpoint.latest(saves)
    assert kept is not None, "the build prepares a first checkpoint"
    loading = time.monotonic()
    tensors = checkpoint.tensors_of(model, optimizer)
    wanted = tensors if checkpoint.has_optimizer(kept) else checkpoint.tensors_of(model, None)
    checkpoint.load(kept, wanted, engine)
    position = first = saved = checkpoint.position_of(kept)

    batch_rows = stage.rows_per_step(context_length)
    micro = _micro_batch(recipe, context_length, engine)
    batch_sequences = batch_rows * stage.patch_size
    reading = Reading(
        context_length,
        stage.patch_size,
        stage.block,
        first=position.sequences - stage.part_at(position.step).before(batch_sequences),
        sequences=stage.batches * batch_sequences,
    )
    held_out = held_out_sample(store, context_length).to(engine.device)
    held_out_every = recipe.held_out_every_steps or max(1, stage.steps // 20)
    began = time.monotonic()
    saving = SavingClock(recipe.checkpoints, expected=began - loading)
    keeping = kept_checkpoints(stage, recipe)
    watch = Watch(model.config.vocab_size)
    if engine.is_main:
        view.stage_started(stage.name, stage.steps, first.step)

    with Monitor(folder, first.step, view) if engine.is_main else nullcontext() as monitor, interruption.deferred():

        def save() -> Path:
            if monitor:
                monitor.flush()
            return checkpoint.save(saves, tensors, position, engine, keeping)

        while position.step < stage.steps:
            part = stage.part_at(position.step)
            rate = learning_rate(stage.rate, part.begin, stage.batches, part.parts)
            rows, tokens = batch_rows // part.parts, stage.tokens_per_step // part.parts
            mine = rows_of_rank(rows, engine.rank, engine.world_size)
            first_row = part.before(batch_rows) + mine.start
            sequences = torch.from_numpy(read(store.train, reading, first_row, len(mine), recipe.seed))
            sums = _accumulate(objective, sequences, micro, tokens, precision, engine)
            gradient_norm = _clip(model, recipe.gradient_clip)
            # One reduction a step: the losses, and what must be agreed on before anyone acts on it.
            stop, due = interruption.requested is not None, engine.is_main and saving.due(position.step)
            mine_of_all = torch.tensor([*sums, float(stop), float(due)], dtype=torch.float64)
            *totals, stops, dues = engine.sum(mine_of_all).tolist()
            mean_loss, mean_z_loss = (total / tokens for total in totals)
            fault = watch.fault(mean_loss, gradient_norm, warmed_up=part.begin >= stage.rate.warmup_steps)
            if fault:
                raise _diverged(stage, position.step + 1, fault, kept)
            # Saved before the update: that the loss is finite has just shown that these weights are good.
            if (stops or dues) and position.step > saved.step:
                kept, saved = saving.timed(save), position
            if stops:
                raise Interrupted(interruption.requested or signal.SIGTERM)
            update(rate, position.step)
            optimizer.zero_grad(set_to_none=True)
            position = replace(
                position,
                step=position.step + 1,
                sequences=position.sequences + rows * stage.patch_size,
                positions=position.positions + rows * context_length,
                seconds=first.seconds + time.monotonic() - began,
                token_ready=stage.patch_size == 1,
            )

            if monitor:
                read_before, read_now = (tokens_read(stage, each.step) for each in (first, position))
                monitor.record(
                    {
                        "step": position.step,
                        "tokens": read_now,
                        "epoch": reading.epochs(position.sequences, len(store.train)),
                        loss_name(stage): mean_loss,
                        **({"z_loss": mean_z_loss} if recipe.z_loss else {}),
                        "learning_rate": rate,
                        "gradient_norm": gradient_norm,
                        "tokens_per_second": (read_now - read_before) / (position.seconds - first.seconds),
                        "seconds": position.seconds,
                    }
                )
            if position.step % held_out_every == 0 or position.step == stage.steps:
                held_out_loss = quick_loss(objective, held_out, micro, precision, engine)
                if not math.isfinite(held_out_loss):
                    raise _diverged(stage, position.step, f"held-out loss {held_out_loss}", kept)
                if monitor:
                    said = outlook(position.step, held_out_loss, position.seconds) if outlook else {}
                    monitor.record({"step": position.step, "held_out_loss": held_out_loss, **said})
        if position.step > saved.step:
            saving.timed(save)
        if engine.sum(torch.tensor([float(interruption.requested is not None)])).item():
            raise Interrupted(interruption.requested or signal.SIGTERM)

    return Trained(
        seconds=first.seconds + time.monotonic() - began,
        checkpoint_seconds=saving.spent,
        epochs=reading.epochs(position.sequences, len(store.train)),
    )


def kept_checkpoints(stage: Stage, recipe: Recipe) -> Checkpoints:
    """Which checkpoints of a stage are kept beside the newest: those that may be averaged, at a constant rate."""
    is_constant = stage.patch_size == 1 and stage.rate.decay_steps == 0
    return recipe.checkpoints if is_constant else recipe.checkpoints.model_copy(update={"keep": 0})


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


def _accumulate(
    objective: nn.Module, sequences: Tensor, micro: int, global_tokens: int, precision: Precision, engine: Engine
) -> list[float]:
    """Add the gradients of this process's share of the batch; returns its summed cross-entropy and z-loss.

    The loss is a sum over tokens divided by the global count, so neither the number of processes nor the micro-batch
    changes it. Sharding averages gradients over processes, hence the factor `world_size`.
    """
    objective.train()
    parts = torch.split(sequences, micro)
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for index, part in enumerate(parts):
        engine.synchronise_gradients(objective, last=index == len(parts) - 1)
        with engine.autocast(precision):
            losses = objective(part.to(engine.device, non_blocking=True))
        (losses.minimised * (engine.world_size / global_tokens)).backward()
        total += torch.stack([losses.cross_entropy, losses.z_loss])
    found: list[float] = total.tolist()
    return found


def _clip(model: nn.Module, largest: float | Literal["none"]) -> float:
    """Scale the gradients down to a global norm of at most `largest`, if any; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if largest == "none" else largest)
    full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return float(full)


def smallest_rows(stage: Stage, context_length: int) -> int:
    """Rows of the smallest step of a stage, of which every other has a multiple."""
    return stage.rows_per_step(context_length) // stage.part_at(0).parts


def rows_of_rank(rows_per_step: int, rank: int, world_size: int) -> range:
    """Which rows of a global step a process trains on; KinfolkError if they do not divide evenly."""
    if rows_per_step % world_size:
        raise KinfolkError(
            f"a step of {rows_per_step} sequences does not divide among {world_size} processes",
            where="recipe.tokens_per_step, and recipe.batch_warmup.start where there is one",
            fix=f"use a multiple of {world_size} sequences, or another number of processes",
        )
    share = rows_per_step // world_size
    return range(rank * share, (rank + 1) * share)


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


def _diverged(stage: Stage, step: int, fault: str, kept: Path) -> DivergedError:
    """The error of a diverged run; all processes come to it together."""
    return DivergedError(
        fault,
        step=step,
        steps=stage.steps,
        where=f"stage {stage.name}",
        fix=f"lower recipe.peak_learning_rate (now {stage.rate.peak:g} at its peak), lengthen the warm-up, or set "
        f"recipe.precision to float32, and build into another --run; the last good checkpoint is kept at {kept}",
    )
