"""What a run directory knows of lines of training: their curves, and the gain that earlier ones have had."""

from collections.abc import Mapping
from pathlib import Path

from kinfolk.build.line import Line, Point, StageDocument, line_of
from kinfolk.schedule.live import NotYet, earlier_gain
from kinfolk.schedule.live_law import Gain
from kinfolk.schedule.own_runs import json_lines


def read_points(folder: Path, stage: StageDocument) -> list[Point]:
    """The quick held-out losses of a stage of the run in `folder`; where a step was done twice, the later one."""
    records = json_lines(folder / "stages" / stage["name"] / "metrics.jsonl")
    found = {int(each["step"]): float(each["held_out_loss"]) for each in records if "held_out_loss" in each}
    return sorted(found.items())


def gain_for(folder: Path, stages: Mapping[str, StageDocument], line: Line) -> tuple[Gain, str | None]:
    """The prior of a line's gain from earlier lines of the run that have decayed to their end, and where it comes from.

    That is the last stage of one of them; None where none says anything.
    """
    names, curves = [], []
    for name, stage in stages.items():
        if stage is line.stages[-1]:
            break
        other = line_of(stages, name)
        if isinstance(other, NotYet) or not other.decays or other.stages[0] is line.stages[0]:
            continue
        points = [read_points(folder, each) for each in other.stages]
        if points[-1] and points[-1][-1][0] == stage["steps"]:
            names.append(name)
            curves.append((other.schedule, *other.curve(points)))
    gain, used = earlier_gain(curves)
    return gain, None if used is None else names[used]
