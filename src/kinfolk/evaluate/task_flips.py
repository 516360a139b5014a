"""Prediction flips on tasks: the questions that one model answers right and another wrong."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from kinfolk.evaluate.flips import prediction_flips
from kinfolk.evaluate.tasks import TaskResult


def task_flips(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """For every two of the models, in their order, and every metric of a task that is right or wrong: the flips.

    `results` are of the same tasks with the same settings, as `run_tasks` returns them.
    """
    by_model: dict[str, dict[str, TaskResult]] = {}
    for result in results:
        by_model.setdefault(result.path, {})[result.task] = result
    found = []
    for first, second in combinations(by_model, 2):
        for task, before in by_model[first].items():
            after = by_model[second][task]
            for key in before.right.keys() & after.right.keys():
                metric, _, filter_name = key.partition(",")
                flips = prediction_flips(_bits(before.right[key]), _bits(after.right[key]))
                names = {"first": first, "second": second, "task": task, "metric": metric, "filter": filter_name}
                found.append({**names, **flips.to_dict()})
    return found


def _bits(digits: str) -> list[bool]:
    return [digit == "1" for digit in digits]
