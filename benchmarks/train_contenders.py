"""The whole trainings that benchmarks/train.py compares: kinfolk's, the HF Trainer's, and one written by hand.

Each says when its first step was done, when all was, and its last loss.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train_build import begin_run, watched_build
from train_task import (
    CONTEXT,
    PEAK,
    SEQUENCES_PER_MICRO_BATCH,
    SEQUENCES_PER_STEP,
    new_model,
    saved_every,
    sequences,
    steps_of,
)

CONTENDERS = ("kinfolk", "hf trainer", "bare loop")


def measured(contender: str, size: str, work: Path) -> dict[str, float]:
    if contender == "kinfolk":
        return by_kinfolk(size, work)
    if contender == "hf trainer":
        return by_trainer(size, work)
    return by_bare_loop(size, work)


def by_kinfolk(size: str, work: Path) -> dict[str, float]:
    """An ordinary build of one member: evaluation, which nobody else does, and export are not counted."""
    from kinfolk.train import stage

    run = work / f"run-{size}"
    begin_run(work, run)
    moments: list[float] = []
    losses: list[float] = []
    evaluating = time_spent_in(stage, "quick_loss")

    def on_loss(stage: str, loss: float) -> None:
        moments.append(time.time())
        losses.append(loss)

    watched_build(work, size, run, on_loss)
    saved = max(path.stat().st_mtime for path in run.glob("stages/*/checkpoints/*/state.json"))
    return {"first_step_at": moments[0], "ended": max(saved, moments[-1]) - sum(evaluating), "loss": losses[-1]}


def time_spent_in(module: Any, name: str) -> list[float]:
    """The seconds of each call of a module's function from now on, in this process."""
    seconds: list[float] = []
    real = getattr(module, name)

    def timed(*arguments: Any) -> Any:
        began = time.time()
        found = real(*arguments)
        seconds.append(time.time() - began)
        return found

    setattr(module, name, timed)
    return seconds


def by_trainer(size: str, work: Path) -> dict[str, float]:
    moments: list[float] = []
    loss = trainer_training(size, work, lambda: moments.append(time.time()))
    return {"first_step_at": moments[0], "ended": time.time(), "loss": loss}


def trainer_training(size: str, work: Path, on_step: Callable[[], None]) -> float:
    """The HF Trainer's; calls `on_step` after every step, before the checkpoint behind it. Returns the last loss."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    steps = steps_of(size)
    rows = sequences(work)[:, :CONTEXT]

    class Watching(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            on_step()

    trainer = Trainer(
        model=new_model(size, work),
        args=TrainingArguments(
            output_dir=str(work / f"trainer-{size}"),
            use_cpu=True,
            bf16=True,
            per_device_train_batch_size=SEQUENCES_PER_MICRO_BATCH,
            gradient_accumulation_steps=SEQUENCES_PER_STEP // SEQUENCES_PER_MICRO_BATCH,
            max_steps=steps,
            learning_rate=PEAK,
            weight_decay=0.1,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps // 20),
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            save_steps=saved_every(size),
            save_total_limit=1,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows[: steps * SEQUENCES_PER_STEP]],
        callbacks=[Watching()],
    )
    trainer.remove_callback(PrinterCallback)  # its lines would stand between those of the table
    trainer.train()
    return float([record["loss"] for record in trainer.state.log_history if "loss" in record][-1])


def by_bare_loop(size: str, work: Path) -> dict[str, float]:
    losses, moments = [], []
    for loss in bare_training(size, work):
        losses.append(loss)
        moments.append(time.time())
    return {"first_step_at": moments[0], "ended": moments[-1], "loss": losses[-1]}


def bare_training(size: str, work: Path) -> Iterator[float]:
    """What one would write by hand: transformers' own loss, autocast, fused AdamW, a clip, a linear decay.

    Yields the loss of each step, when that and the checkpoint behind it are done.
    """
    steps = steps_of(size)
    rows = sequences(work)[:, :CONTEXT]
    model = new_model(size, work).train()
    optimizer = bare_optimizer(model)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / max(1, steps // 20), (steps - step) / steps)
        loss = bare_step(model, optimizer, rows[step * SEQUENCES_PER_STEP : (step + 1) * SEQUENCES_PER_STEP])
        if (step + 1) % saved_every(size) == 0:
            model.save_pretrained(work / f"bare-{size}")
        yield loss


def bare_optimizer(model: Any) -> Any:
    import torch

    return torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def bare_step(model: Any, optimizer: Any, rows: Any) -> float:
    """Train on rows (sequences per step, context), in micro-batches; returns their mean loss."""
    import torch

    total = 0.0
    for part in rows.split(SEQUENCES_PER_MICRO_BATCH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=part, labels=part, use_cache=False).loss
        loss = loss * len(part) / SEQUENCES_PER_STEP
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
