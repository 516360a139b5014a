"""Results on tasks, by task and member, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.report.evaluation import TaskResult
from kinfolk.report.figures import SYMBOLS, Plot, short, stage_colours
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.run import Run


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task."""

    first: TaskResult
    """One of its results, for what they have in common."""
    by_member: dict[str, TaskResult]

    @property
    def metric(self) -> str:
        """With its filter, as lm-eval writes it, where it has one."""
        return self.first.metric if self.first.filter == "none" else f"{self.first.metric},{self.first.filter}"


def task_rows(run: Run) -> tuple[TaskRow, ...]:
    """A row for every metric, in the order in which they were measured."""
    found: dict[tuple[object, ...], list[TaskResult]] = {}
    for each in run.tasks:
        found.setdefault((each.part_of, each.task, each.metric, each.filter, each.limit), []).append(each)
    return tuple(TaskRow(results[0], {each.member: each for each in results}) for results in found.values())


def tested_members(run: Run) -> tuple[str, ...]:
    """The members that have a result: those of the run in its order, then others."""
    tested = dict.fromkeys(result.member for result in run.tasks)
    known = [member.member for member in run.members if member.member in tested]
    return tuple(dict.fromkeys([*known, *tested]))


def task_plot(runs: Sequence[Run]) -> Plot:
    """Every member on every task that was asked for, by its first metric of which more is better."""
    colours = stage_colours(runs)
    traces: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        rows = [row for row in task_rows(run) if row.first.part_of is None and row.first.higher_is_better]
        shown = {row.first.task: row for row in reversed(rows)}
        stages = {stage.plan.member: stage.plan.name for stage in run.member_stages}
        for member in tested_members(run):
            results = [row.by_member[member] for row in reversed(shown.values()) if member in row.by_member]
            known = [(result, result.value) for result in results if result.value is not None]
            name = as_shown(f"{member}, {run.name}" if len(runs) > 1 else member)
            colour = colours.get(stages.get(member, ""), "--soft")
            traces += [_trace(known, name, colour, SYMBOLS[number % len(SYMBOLS)])] if known else []
    drawn = layout("result, with its 90 % interval", "", x_type="linear")
    drawn["yaxis"] |= {"type": "category", "autorange": "reversed", "title": {"text": ""}}
    views = {"result": {"data": traces, "layout": {**drawn, "scattermode": "group"}}}
    said = f"The figures are in the {'tables' if len(runs) > 1 else 'table'} below."
    return Plot("tasks", "Results on tasks", views, said, empty=not traces)


def _trace(results: list[tuple[TaskResult, float]], name: str, colour: str, symbol: str) -> dict[str, Any]:
    values = [value for _, value in results]
    intervals = [result.interval or (value, value) for result, value in results]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        # Members stand below each other within a task.
        "orientation": "h",
        "offsetgroup": name,
        "x": [short(value) for value in values],
        "y": [as_shown(result.task) for result, _ in results],
        "customdata": [as_shown(result.metric) for result, _ in results],
        "marker": {"color": colour, "size": 8, "symbol": symbol},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [short(high - value) for value, (_, high) in zip(values, intervals, strict=True)],
            "arrayminus": [short(value - low) for value, (low, _) in zip(values, intervals, strict=True)],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        "hovertemplate": f"<b>{name}</b><br>%{{y}}: %{{x:.4f}} (%{{customdata}})<extra></extra>",
    }
