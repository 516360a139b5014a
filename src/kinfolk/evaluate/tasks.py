"""Checkpoints on tasks, run by lm-eval: figures with intervals, and which questions were answered right.

The figures are lm-eval's own, from the same code on the same prompts: its command line prints the same digits for the
same checkpoint, task, limit and batch size. What was measured is kept (`kinfolk.evaluate.cache`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.evaluator import evaluate

from kinfolk.errors import KinfolkError, in_short
from kinfolk.evaluate import cache
from kinfolk.evaluate.harness import Harness, silence
from kinfolk.evaluate.load import load_checkpoint, load_config, quiet
from kinfolk.evaluate.measure import Progress, quietly
from kinfolk.evaluate.task_figures import figures_of, right_answers
from kinfolk.evaluate.task_names import AskedTask
from kinfolk.train.engine import single_engine
from kinfolk.train.model import check_token_ready, is_token_ready

_SEEDS = (0, 1234, 1234)
"""Of Python, numpy and torch, as lm-eval's command line sets them."""


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are run."""

    limit: int | None = None
    """The first questions of each task only; None for all."""
    batch_size: int = 1
    """Texts at a time. Other sizes than lm-eval's own 1 may move last digits."""
    force: bool = False


@dataclass(frozen=True)
class TaskResult:
    """One checkpoint on one task, or on one group of tasks."""

    path: str
    checkpoint: str | None
    """Digest of the checkpoint; None for a name on the hub."""
    task: str
    figures: list[dict[str, Any]]
    """One record for each figure, as docs/evaluate.md describes them, of the task or group and of its parts."""
    right: dict[str, str]
    """By metric: for each question 1 where it was answered right, else 0. Metrics that are not right or wrong lack."""


def run_tasks(
    paths: Sequence[str], tasks: Sequence[AskedTask], settings: TaskSettings, progress: Progress = quietly
) -> tuple[list[TaskResult], int]:
    """Run each checkpoint on each task; also how many of the results were known from before.

    A checkpoint is loaded once, and only if something about it is not known. Raises KinfolkError for what is no
    checkpoint, for weights that were trained on patches last unless forced, and for tasks that do not fit a model.
    """
    for path in paths:
        check_token_ready(is_token_ready(load_config(path)), path, settings.force)
    digests = {task.name: task.digest(settings.limit) for task in tasks}
    bench = _Bench(settings, progress, len(paths) * len(tasks))
    results, known = [], 0
    for path in paths:
        checkpoint = cache.checkpoint_digest(path)
        for task in tasks:
            bench.number += 1
            asked = {"task": digests[task.name], **vars(settings)}
            found, was_known = cache.remembered("tasks", [checkpoint], asked, partial(bench.measure, path, task))
            results.append(TaskResult(path, checkpoint, task.name, found["figures"], found["right"]))
            known += was_known
    return results, known


class _Bench:
    """Holds the checkpoint that was used last."""

    def __init__(self, settings: TaskSettings, progress: Progress, count: int) -> None:
        self.settings = settings
        self.progress = progress
        self.count = count
        self.number = 0
        self._harness: Harness | None = None

    def measure(self, path: str, task: AskedTask) -> dict[str, Any]:
        """A checkpoint's figures on a task, as plain data."""
        harness = self._loaded(path)
        what = f"{Path(path).name}: {task.name} ({self.number} of {self.count})"
        harness.begin(lambda done, of: self.progress(what, done, of))
        self.progress(what, 0, 1)
        task.prepare()
        _seed()
        try:
            with silence(), quiet():
                results: Any = evaluate(harness, task.loaded, limit=self.settings.limit, log_samples=True)
        except KinfolkError as error:
            raise KinfolkError(f"task {task.name}: {error.problem}", where=error.where, fix=error.fix) from error
        except Exception as error:  # a task's templates and metrics raise whatever they raise
            raise KinfolkError(
                f"task {task.name} failed: {in_short(error)}",
                where=path,
                fix="correct the task, or leave it out; where memory was short, use a smaller --batch-size",
            ) from error
        how = {
            "limit": self.settings.limit,
            "requests": harness.requests,
            "cut": harness.cut,
            "batch_size": self.settings.batch_size,
            "lm_eval": lm_eval.__version__,
        }
        return {
            "figures": [{**figure, **how} for figure in figures_of(results, task.name)],
            "right": right_answers(results["samples"]),
        }

    def _loaded(self, path: str) -> Harness:
        if self._harness is None or self._harness.path != path:
            self._harness = None  # the one before goes first
            device = single_engine().device
            model, tokenizer = load_checkpoint(path, device, self.settings.force, dtype="auto")
            with silence(), quiet():
                self._harness = Harness(path, model, tokenizer, self.settings.batch_size)
        return self._harness


def _seed() -> None:
    import random

    python, numpy, pytorch = _SEEDS
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)
