"""The annealing law of Tissue et al., arXiv 2408.11029: L0 + A S1^-a - C S2.

S1 is the sum of all rates, S2 the sum over past changes of (rate before - rate after) (1 - lam^n) / (1 - lam), n the
steps since the change: an annealing with momentum.
"""

from collections.abc import Sequence

import numpy as np

from kinfolk.schedule.changes import Changes, changes
from kinfolk.schedule.curve_fit import fit_curves, scale_of
from kinfolk.schedule.shapes import Array, Schedule, Steps
from kinfolk.schedule.targets import Numbers, Target

MEMORY = 1000.0
"""1 / (1 - lam) of the published lam = 0.999, in steps."""


def fit(targets: Sequence[Target], near: Numbers | None = None) -> Numbers:
    """L0, A, a, C at the published memory of the annealing; from the parameters `near`, where given."""
    starts = [_without_memory(near)] if near else _starts(targets)
    return {**fit_curves(_fixed, starts, targets), "memory": MEMORY}


def fit_free(targets: Sequence[Target], near: Numbers | None = None) -> Numbers:
    """L0, A, a, C and the memory; from the parameters `near`, where given."""
    starts = [near] if near else [{**start, "memory": MEMORY} for start in _starts(targets)]
    return fit_curves(_free, starts, targets)


def predict(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """Loss (point,) after each of `steps` (point,) of a schedule."""
    return _free(np.log([numbers[name] for name in ("L0", "A", "a", "C", "memory")]), changes([(schedule, steps)]))[0]


def _starts(targets: Sequence[Target]) -> list[dict[str, float]]:
    lowest, total = scale_of(targets)
    return [
        {"L0": 0.85 * lowest, "A": 0.15 * lowest * total**a, "a": a, "C": 0.05 * lowest / total} for a in (0.3, 0.6)
    ]


def _without_memory(numbers: Numbers) -> Numbers:
    return {name: value for name, value in numbers.items() if name != "memory"}


def _fixed(theta: Array, pairs: Changes) -> tuple[Array, Array]:
    loss, slopes = _free(np.append(theta, np.log(MEMORY)), pairs)
    return loss, slopes[:, :-1]


def _free(theta: Array, pairs: Changes) -> tuple[Array, Array]:
    constant, scale, exponent, gain, memory = np.exp(theta)
    falling = scale * pairs.total**-exponent
    log_lambda = np.log1p(-1 / max(memory, 1.001))
    decayed = np.exp(pairs.steps * log_lambda)
    annealed = gain * pairs.sum(pairs.change * memory * (1 - decayed))
    # d ln lam / d ln m = 1 / (m - 1)
    by_memory = 1 - decayed - decayed * pairs.steps / max(memory - 1, 1e-3)
    slopes = (
        np.full_like(falling, constant),
        falling,
        -exponent * np.log(pairs.total) * falling,
        annealed,
        gain * pairs.sum(pairs.change * memory * by_memory),
    )
    return constant + falling + annealed, np.stack(slopes, axis=1)
