"""Early stopping: which weights were best on held-out demonstrations, and whether to go on.

What decides is a pure function of the losses in metrics.jsonl, which a resume takes back to its checkpoint; so a
training that was killed stops where one that was not does.
"""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from kinfolk.family.recipe import Checkpoints
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine
from kinfolk.train.saving import save

_ALL = Checkpoints(steps=1, keep=1000)
"""Which of them may go is decided here."""

LOSS = "held_out_loss"


class Best:
    """The held-out losses so far, and the weights of the best; every process makes the same calls."""

    def __init__(self, folder: Path, records: list[dict[str, Any]], model: nn.Module, engine: Engine) -> None:
        """`records` are those of metrics.jsonl up to the checkpoint that training goes on from."""
        self._folder = folder
        self._engine = engine
        self._tensors = checkpoint.tensors_of(model, None)
        self.losses = {int(record["step"]): float(record[LOSS]) for record in records if LOSS in record}
        engine.on_main(self._tidy)

    @property
    def step(self) -> int:
        """Where the loss was lowest; the first of equals."""
        _, step = min((loss, step) for step, loss in self.losses.items())
        return step

    @property
    def loss(self) -> float:
        """The lowest, in nats per response token."""
        return self.losses[self.step]

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` losses (0 for any number) were no better than the best before them."""
        return patience > 0 and bool(self.losses) and sum(step > self.step for step in self.losses) >= patience

    def note(self, position: Position, loss: float, saved: int) -> None:
        """Take a loss in; weights that are better than all before are saved.

        `saved` is the step of the newest checkpoint of training: weights that a resume from there needs stay.
        """
        if not self.losses or loss < self.loss:
            save(self._folder, self._tensors, position, self._engine, _ALL)
            self._engine.on_main(lambda: self._keep_for(saved))
        self.losses[position.step] = loss

    def _tidy(self) -> None:
        """Remove weights that were saved behind the checkpoint: their steps are done again."""
        for folder in checkpoint.checkpoints(self._folder):
            if checkpoint.step_of(folder) not in self.losses:
                shutil.rmtree(folder)

    def _keep_for(self, saved: int) -> None:
        earlier = [each for each in checkpoint.checkpoints(self._folder) if checkpoint.step_of(each) <= saved]
        for folder in earlier[:-1]:
            shutil.rmtree(folder)
