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

    task: str
    metric: str
    version: str
    examples: int | None
    limited: bool
    by_member: dict[str, TaskResult]


def task_rows(run: Run) -> tuple[TaskRow, ...]:
    """A row for every metric, in the order in which they were measured."""
    found: dict[tuple[str, str], list[TaskResult]] = {}
    for result in run.tasks:
        found.setdefault((result.task, result.metric), []).append(result)
    return tuple(
        TaskRow(
            task=task,
            metric=metric,
            version="" if results[-1].version is None else str(results[-1].version),
            examples=results[-1].examples,
            limited=any(each.limit is not None for each in results),
            by_member={each.member: each for each in results},
        )
        for (task, metric), results in found.items()
    )


def tested_members(run: Run) -> tuple[str, ...]:
    """The members that have a result: those of the run in its order, then others."""
    tested = dict.fromkeys(result.member for result in run.tasks)
    known = [member.member for member in run.members if member.member in tested]
    return tuple(dict.fromkeys([*known, *tested]))


def task_plot(runs: Sequence[Run]) -> Plot:
    """Every member's first metric of every task, with its interval."""
    colours = stage_colours(runs)
    traces: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        first = {row.task: row for row in reversed(task_rows(run))}
        stages = {stage.plan.member: stage.plan.name for stage in run.member_stages}
        for member in tested_members(run):
            results = [
                (task, row.by_member[member]) for task, row in reversed(first.items()) if member in row.by_member
            ]
            name = as_shown(f"{member}, {run.name}" if len(runs) > 1 else member)
            colour = colours.get(stages.get(member, ""), "--soft")
            traces.append(_trace(results, name, colour, SYMBOLS[number % len(SYMBOLS)]))
    drawn = layout("result, with its interval", "", x_type="linear")
    drawn["yaxis"] |= {"type": "category", "autorange": "reversed", "title": {"text": ""}}
    views = {"result": {"data": traces, "layout": {**drawn, "scattermode": "group"}}}
    said = f"The figures are in the {'tables' if len(runs) > 1 else 'table'} below."
    return Plot("tasks", "Results on tasks", views, said, empty=not traces)


def _trace(results: list[tuple[str, TaskResult]], name: str, colour: str, symbol: str) -> dict[str, Any]:
    intervals = [result.interval or (result.value, result.value) for _, result in results]
    values = [result.value for _, result in results]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [short(value) for value in values],
        "y": [as_shown(task) for task, _ in results],
        "customdata": [as_shown(result.metric) for _, result in results],
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
