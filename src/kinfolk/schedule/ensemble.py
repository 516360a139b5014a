"""The mean of the annealing laws, the multi-power law and the functional scaling law: the best worst case of them."""

from collections.abc import Sequence

import numpy as np

from kinfolk.schedule import annealing, functional, multipower
from kinfolk.schedule.shapes import Array, Schedule, Steps
from kinfolk.schedule.targets import Numbers, Target

_MEMBERS = {
    "annealing": (annealing.fit, annealing.predict),
    "annealing-free": (annealing.fit_free, annealing.predict),
    "multipower": (multipower.fit, multipower.predict),
    "functional": (functional.fit, functional.predict),
}
MEMBERS = tuple(_MEMBERS)


def fit(targets: Sequence[Target], near: Numbers | None = None) -> Numbers:
    """The parameters of every member, named MEMBER.PARAMETER; from the parameters `near`, where given."""
    parts = {name: fit(targets, _part(near, name) if near else None) for name, (fit, _) in _MEMBERS.items()}
    return joined(parts)


def joined(parts: dict[str, Numbers]) -> Numbers:
    """The ensemble of members that are fitted already."""
    return {f"{name}.{key}": value for name in MEMBERS for key, value in parts[name].items()}


def predict(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """Mean loss (point,) after each of `steps` (point,) of a schedule."""
    return np.asarray(members(numbers, schedule, steps).mean(axis=0))


def members(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """What each member says, of shape (member, point)."""
    return np.stack([predict(_part(numbers, name), schedule, steps) for name, (_, predict) in _MEMBERS.items()])


def _part(numbers: Numbers, member: str) -> Numbers:
    prefix = f"{member}."
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
