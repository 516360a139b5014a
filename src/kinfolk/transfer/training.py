"""Train a model on demonstrations: the loop of value networks, of full fine-tuning and of baking."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kinfolk.train.checkpoint import NEWEST
from kinfolk.train.divergence import Watch
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.gradients import accumulate, clip
from kinfolk.train.interruption import Interruption
from kinfolk.train.monitor import View, read_metrics
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.rate import learning_rate
from kinfolk.train.resumable import Course, Resumable, of_main
from kinfolk.train.update import make_update
from kinfolk.transfer.anchors import Anchors
from kinfolk.transfer.base_logits import logit_width
from kinfolk.transfer.batches import Batch, micro_batches, padded, step_order, tokens_at_once
from kinfolk.transfer.best import LOSS, Best
from kinfolk.transfer.demonstrations import Demonstrations
from kinfolk.transfer.settings import HELD_OUT_DEMONSTRATIONS, Settings


@dataclass(frozen=True)
class Trained:
    """What a training came to, besides its weights."""

    steps: int
    """Optimizer steps done."""
    planned_steps: int
    tokens: int
    """Tokens of demonstrations that were read, prompts too, without padding."""
    anchor_tokens: int
    best_step: int
    """The step whose weights are the result."""
    held_out_before: float
    """Loss of the watched base and value network at step 0, in nats per response token."""
    held_out_loss: float
    """The lowest."""
    seconds: float
    checkpoint_seconds: float


@dataclass(frozen=True)
class Material:
    """What a training reads."""

    train: Demonstrations
    held_out: Demonstrations
    anchors: Anchors | None = None

    @property
    def watched(self) -> Demonstrations:
        """The held-out demonstrations that are scored during training, spread evenly."""
        count = min(len(self.held_out), HELD_OUT_DEMONSTRATIONS)
        return Demonstrations(tuple(self.held_out.items[each * len(self.held_out) // count] for each in range(count)))


def train_on_demonstrations(
    name: str,
    objective: nn.Module,
    material: Material,
    settings: Settings,
    precision: Precision,
    engine: Engine,
    folder: Path,
    view: View,
    interruption: Interruption,
) -> Trained:
    """Train `objective.model` from the newest checkpoint in `folder`/checkpoints to the last step, or until the loss on
    held-out demonstrations gets no better. The weights that were best there are the newest in `folder`/best.

    Every process calls this, with the objective on its device. Raises Interrupted after saving when a stop was asked
    for, and DivergedError on a loss or gradient that is not finite.
    """
    model: PreTrainedModel = objective.model  # type: ignore[assignment]
    train, watched = material.train, material.watched
    steps = settings.steps(len(train))
    rate = settings.rate(steps)
    optimizer = make_optimizer(model, settings.optimizer)
    update = make_update(model, optimizer, None)
    course = Course(
        name=name,
        steps=steps,
        folder=folder,
        saving=settings.checkpoints,
        kept=NEWEST,
        remedy=f"lower --learning-rate (now {settings.learning_rate:g}) or use --precision float32, in another --run",
    )
    training = Resumable(course, model, optimizer, Watch(logit_width(model)), engine, view, interruption)
    first = training.first
    best = Best(folder / "best", _records(folder, first.step, engine), model, engine)
    most_tokens = micro_batch_tokens(settings, model, engine)
    held_out = all_batches(watched, most_tokens)
    every = settings.held_out_every_steps or max(1, steps // 20)

    def check_held_out() -> None:
        loss = of_main(held_out_loss(objective, held_out, precision, engine), engine)
        training.check_held_out(loss)
        best.note(training.position, loss, training.saved.step)
        training.record({LOSS: loss})

    with training:
        if not best.losses:
            check_held_out()
        while training.position.step < steps and not best.is_over(settings.patience):
            position = training.position
            order = step_order(train, position.sequences, settings.demonstrations_per_step, settings.seeds["order"])
            batches = micro_batches(train, order, most_tokens, engine.rank, engine.world_size)
            scored = sum(train.items[index].scored for index in order)
            tokens = int(train.lengths[order].sum())
            if material.anchors is not None:
                batches += material.anchors.batches(position.step, scored, most_tokens, engine)
            sums = accumulate(objective, batches, scored, precision, engine)
            gradient_norm = clip(model, settings.gradient_clip)
            mean_loss, mean_regulariser = training.agreed(sums, scored, gradient_norm)
            step_rate = learning_rate(rate, position.step, steps)
            update(step_rate, position.step)
            optimizer.zero_grad(set_to_none=True)
            training.advance(sequences=position.sequences + len(order), positions=position.positions + tokens)

            position = training.position
            training.record(
                {
                    "tokens": position.positions,
                    "epoch": position.sequences / len(train),
                    "loss": mean_loss,
                    "regulariser": mean_regulariser,
                    "learning_rate": step_rate,
                    "gradient_norm": gradient_norm,
                    "tokens_per_second": (position.positions - first.positions) / (position.seconds - first.seconds),
                    "seconds": position.seconds,
                }
            )
            if position.step % every == 0 or position.step == steps:
                check_held_out()
        training.finish()

    return Trained(
        steps=training.position.step,
        planned_steps=steps,
        tokens=training.position.positions,
        anchor_tokens=material.anchors.tokens(training.position.step) if material.anchors else 0,
        best_step=best.step,
        held_out_before=best.losses[0],
        held_out_loss=best.loss,
        seconds=training.seconds,
        checkpoint_seconds=training.seconds_of_saving,
    )


@torch.no_grad()
def held_out_loss(
    objective: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    engine: Engine,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """What is minimised, in evaluation mode, in nats per response token; of all batches, whatever the process."""
    objective.eval()
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for done, batch in enumerate(batches):
        with engine.autocast(precision):
            total += objective(batch.to(engine.device)).minimised
        progress(done + 1, len(batches))
    objective.train()
    scored = sum(int(batch.scored.sum()) for batch in batches)
    return total.item() / scored


def all_batches(demonstrations: Demonstrations, most_tokens: int) -> list[Batch]:
    """Every demonstration once, the longest first, in batches of at most so many tokens with padding."""
    order = np.argsort(-demonstrations.lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, most_tokens // int(demonstrations.lengths[order[start]]))
        batches.append(padded(demonstrations, order[start : start + rows].tolist()))
        start += rows
    return batches


def micro_batch_tokens(settings: Settings, model: PreTrainedModel, engine: Engine) -> int:
    """The most tokens of a micro-batch, as set or as suits the device."""
    return settings.tokens_per_micro_batch or tokens_at_once(engine.device, logit_width(model))


def _records(folder: Path, step: int, engine: Engine) -> list[dict[str, float]]:
    """The metrics up to a step, read by every process before the main one takes back what is behind it."""
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["step"] <= step]
    engine.sum(torch.zeros(1))
    return records
