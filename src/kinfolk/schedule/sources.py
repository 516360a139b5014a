"""Schedules from elsewhere: arrays, functions of the step, CSV columns, and schedulers of torch and transformers."""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError
from kinfolk.laws.tables import table_rows
from kinfolk.schedule.shapes import Array

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

LARGEST_RATE = 1.0
"""A rate from here on is a multiple of something else, not a learning rate of a language model."""


def from_array(values: Sequence[float] | NDArray[Any], where: str = "schedule") -> Array:
    """The rate of every step, of shape (steps,), checked; KinfolkError for what cannot be rates."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise KinfolkError("this is not a list of numbers", where=where, fix="give one rate for each step") from error
    if found.ndim != 1 or not len(found):
        raise KinfolkError(
            f"rates of shape {found.shape} are no schedule", where=where, fix="give one rate for each step"
        )
    odd = np.nonzero(~np.isfinite(found) | (found < 0))[0]
    if len(odd):
        raise KinfolkError(
            f"the rate of step {odd[0]} is {found[odd[0]]:g}", where=where, fix="give finite rates from 0 up"
        )
    if found.max() == 0:
        raise KinfolkError("every rate is 0", where=where, fix="give a schedule that trains")
    if found.max() >= LARGEST_RATE:
        raise KinfolkError(
            f"a rate of {found.max():g} is no learning rate: it looks like a multiple of the peak, or other units",
            where=where,
            fix="give the rates themselves, such as 3e-4",
        )
    found.setflags(write=False)
    return found


def from_function(rate: Callable[[int], float], steps: int) -> Array:
    """The rates of a function of the 0-based step."""
    return from_array([rate(step) for step in range(steps)])


def from_csv(path: Path, column: str = "lr") -> Array:
    """The rates in a column of a table that has one row for each step; with a column `step`, in its order.

    KinfolkError if a step is missing.
    """
    table = table_rows(path)
    if not table or column not in table[0].values:
        raise KinfolkError(f"there is no column {column!r}", where=str(path), fix="give a column of rates")
    try:
        numbers = [float(row.values[column]) for row in table]
        steps = [int(float(row.values["step"])) for row in table] if "step" in table[0].values else range(len(table))
    except ValueError as error:
        raise KinfolkError(str(error), where=str(path), fix="write plain numbers") from error
    order = np.argsort(steps, kind="stable")
    if not np.array_equal(np.sort(steps) - min(steps), np.arange(len(table))):
        raise KinfolkError("a step is missing or doubled", where=str(path), fix="give one row for each step")
    return from_array(np.array(numbers)[order], where=str(path))


def from_scheduler(scheduler: "LRScheduler", steps: int) -> Array:
    """The rates of the first parameter group over the next `steps` steps of a torch or transformers scheduler.

    A copy is stepped: neither the scheduler nor its optimizer changes.
    """
    import torch

    optimizer = scheduler.optimizer
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    stand_in.param_groups = [
        {**{key: copy.deepcopy(value) for key, value in group.items() if key != "params"}, "params": []}
        for group in optimizer.param_groups
    ]
    copied = copy.deepcopy(scheduler, memo={id(optimizer): stand_in})
    found = []
    with warnings.catch_warnings():
        # Schedulers warn that the optimizer has not stepped: here it never does.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(float(stand_in.param_groups[0]["lr"]))
            copied.step()
    return from_array(found)
