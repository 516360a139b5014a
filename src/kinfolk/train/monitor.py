"""What a stage says about itself while it trains: metrics.jsonl, TensorBoard, and whoever watches live."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from torch.utils.tensorboard.writer import SummaryWriter

from kinfolk import files
from kinfolk.lines import line_of, read_lines

Outlook = Callable[[int, float, float], dict[str, float]]
"""What somebody says of a stage after so many steps, of its held-out loss and its seconds so far."""


class View(Protocol):
    """Somebody who watches a build live."""

    def stage_started(self, name: str, steps: int, first_step: int) -> None: ...

    def stepped(self, record: dict[str, Any]) -> None: ...

    def say(self, message: str) -> None: ...


class Monitor:
    """Writes one line of metrics per step; after a resume, lines past the checkpoint are taken back first."""

    def __init__(self, folder: Path, first_step: int, view: View) -> None:
        self._path = folder / "metrics.jsonl"
        self._view = view
        self._keep_before(first_step)
        self._file: TextIO = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def _keep_before(self, first_step: int) -> None:
        """Drop the lines of steps that will be done again, and those that are damaged or cut in half by a kill."""
        lines = read_lines(self._path)
        kept = {number: record for number, record in lines.records if _step(record) <= first_step}
        damaged = [str(number) for number in lines.damaged if number < max(kept, default=0)]
        if damaged:
            self._view.say(f"warning: {self._path} is damaged: what stood in line {', '.join(damaged)} is lost")
        files.write_text(self._path, "".join(line_of(record) + "\n" for record in kept.values()))

    def record(self, record: dict[str, Any]) -> None:
        """Write one step's record: `step` (done so far), and losses, rates, forecasts by name."""
        if not all(math.isfinite(value) for value in record.values()):
            raise ValueError(f"a metric is not finite: {record}")
        self._file.write(line_of(record) + "\n")
        for key, value in record.items():
            if key != "step":
                self._board.add_scalar(key, value, record["step"])
        self._view.stepped(record)

    def flush(self) -> None:
        """Have the disk hold every line; called before every checkpoint, so that none is ahead of its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl in order; what stood in a damaged line is missing."""
    return [record for _, record in read_lines(path).records if math.isfinite(_step(record))]


def _step(record: dict[str, Any]) -> float:
    """The steps done before a record was made; infinity where it does not say."""
    step = record.get("step")
    return step if isinstance(step, int) else math.inf


def final_loss(records: list[dict[str, Any]], name: str = "loss") -> float:
    """Mean training loss (`patch_loss` at patch level) of the last tenth of a stage's steps, nats per token."""
    losses = [record[name] for record in records if name in record]
    recent = losses[-max(1, len(losses) // 10) :]
    return float(sum(recent) / len(recent))
