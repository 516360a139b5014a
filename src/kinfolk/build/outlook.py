"""What is forecast of a stage while it trains: its last loss, and a better beginning of its decay if there is one.

A forecast is a function of the points of the curve so far and of earlier lines: the same ones give the same forecast,
also in a build that was killed and goes on. It looks at losses that are measured anyway and touches no weight. Its time
is bounded: where it would cost more than SHARE_OF_TIME of the training so far, it waits for a later measurement. So
which forecasts are made depends on the clock, and does not repeat.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinfolk.build.line import Line, Point, line_of, planned_decay, step_at
from kinfolk.build.line_curves import gain_for, read_points
from kinfolk.schedule.advice import Advice, advise
from kinfolk.schedule.live import Forecast, NotYet, forecast, too_early, usable
from kinfolk.schedule.live_law import Gain
from kinfolk.schedule.shapes import Array, NamedSchedule, Steps, length

SHARE_OF_TIME = 0.005


@dataclass(frozen=True)
class Prospect:
    """A stage of a run, and what is known when it begins."""

    line: Line
    gain: Gain
    gain_from: str | None
    """The stage that the prior of the gain comes from; None where it comes from public runs."""
    before: tuple[list[Point], ...]
    """Curves of the earlier stages of the line."""
    planned: NamedSchedule | None
    """The line's schedule to the end of the decay that is planned for it, in this stage or in one after it."""

    def curve(self, points: list[Point]) -> tuple[Steps, Array]:
        """Batches done (point,) and losses (point,) of the whole line, with these points of the stage itself."""
        return self.line.curve([*self.before, points])

    def too_early(self, points: list[Point]) -> NotYet | None:
        """Whether the curve is too short to mean anything."""
        steps, _ = self.curve(points)
        schedule = self.line.schedule
        return too_early(len(usable(schedule, steps)), int(steps[-1]), length(schedule))

    def forecast(self, points: list[Point]) -> Forecast | NotYet:
        """The stage's last loss, from the points of its curve."""
        return forecast(self.line.schedule, *self.curve(points), self.gain)

    def advice(self, points: list[Point]) -> Advice | NotYet | None:
        """When to begin the planned decay; None where none is planned or it has begun."""
        planned = self.planned
        steps, losses = self.curve(points)
        if planned is None or not len(steps) or steps[-1] >= planned.steps - planned.decay_steps:
            return None
        held = replace(planned, shape="constant", decay_fraction=0.0, end_ratio=0.0)
        return advise(held, steps, losses, planned.steps, planned, self.gain, (planned.shape,))


def prospect(folder: Path, stages: dict[str, dict[str, Any]], name: str) -> Prospect | NotYet:
    """What can be said of a stage of the run in `folder`, whose plan's stages are given by name; or why nothing."""
    line = line_of(stages, name)
    if isinstance(line, NotYet):
        return line
    gain, last = gain_for(folder, stages, line)
    return Prospect(
        line,
        gain,
        last,
        tuple(read_points(folder, stage) for stage in line.stages[:-1]),
        planned_decay(stages, name),
    )


def begin_outlook(
    folder: Path, stages: dict[str, dict[str, Any]], name: str, say: Callable[[str], None]
) -> "Outlook | NotYet":
    """The outlook of a stage that is about to train or to go on; where no law holds for it, why, which is said."""
    found = prospect(folder, stages, name)
    if isinstance(found, NotYet):
        say(f"{name}  its end is not forecast: {found.why}")
        return found
    return Outlook(found, read_points(folder, stages[name]))


class Outlook:
    """Makes the forecasts of one stage, and keeps to its time."""

    def __init__(self, seen: Prospect, points: list[Point]) -> None:
        """`points` are those of the stage's curve that an earlier process has measured."""
        self._prospect = seen
        self._points = points
        self.why = "no loss was measured before its end"
        """Why there was no forecast when there last was none."""
        self._spent = 0.0
        self._last = 0.0

    def __call__(self, step: int, loss: float, seconds: float) -> dict[str, float]:
        """What to record beside the held-out loss after `step` steps, so many seconds into the stage."""
        self._points = [*(point for point in self._points if point[0] < step), (step, loss)]
        early = self._prospect.too_early(self._points)
        if early or step >= self._prospect.line.stages[-1]["steps"]:
            self.why = early.why if early else self.why
            return {}
        if self._spent + self._last > SHARE_OF_TIME * seconds:
            self.why = f"it would have taken more than {SHARE_OF_TIME:.1%} of the training"
            return {}
        began = time.monotonic()
        found = self._record()
        self._last = time.monotonic() - began
        self._spent += self._last
        return found

    def _record(self) -> dict[str, float]:
        line = self._prospect.line
        said = self._prospect.forecast(self._points)
        if isinstance(said, NotYet):
            self.why = said.why
            return {}
        found = {"forecast_loss": said.loss, "forecast_low": said.low, "forecast_high": said.high}
        advice = self._prospect.advice(self._points)
        if isinstance(advice, Advice) and not advice.keep:
            found |= {**_advised_begin(line, advice.choice.begin), "advised_gain": advice.gain}
        # A forecast is never a reason to stop training, and the metrics take numbers only.
        return found if all(map(math.isfinite, found.values())) else {}


def _advised_begin(line: Line, batches: int) -> dict[str, float]:
    """Where a decay begins after so many batches of a line: at a step of its last stage, or so many after that."""
    after = batches - line.steps
    if after > 0:
        return {"advised_decay_steps_after": float(after)}
    return {"advised_decay_step": float(step_at(line.stages[-1], batches - line.before))}
