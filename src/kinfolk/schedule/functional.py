"""The functional scaling law, arXiv 2509.19189, in the practical form of its third-party implementation.

L0 + c1 S^-s - c2 sum over changes k of (rate_{k-1} - rate_k)(c3 + S_k^-s)(1 - (1 + c4 (S - S_k))^-g), S_k the sum of
the rates up to the change.
"""

from collections.abc import Sequence

import numpy as np

from kinfolk.schedule.changes import Changes, changes
from kinfolk.schedule.curve_fit import fit_curves, scale_of
from kinfolk.schedule.shapes import Array, Schedule, Steps
from kinfolk.schedule.targets import Numbers, Target

PARAMETERS = ("L0", "c1", "s", "c2", "c3", "c4", "g")


def fit(targets: Sequence[Target], near: Numbers | None = None) -> Numbers:
    """All seven parameters; from the parameters `near`, where given."""
    if near:
        return fit_curves(_evaluate, [near], targets)
    lowest, total = scale_of(targets)
    starts = [
        {
            **{"L0": 0.85 * lowest, "c1": 0.15 * lowest * total**s, "s": s},
            **{"c2": 1.5 * lowest, "c3": 100.0, "c4": 700.0 / total, "g": 0.5},
        }
        for s in (0.3, 0.6)
    ]
    return fit_curves(_evaluate, starts, targets)


def predict(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """Loss (point,) after each of `steps` (point,) of a schedule."""
    return _evaluate(np.log([numbers[name] for name in PARAMETERS]), changes([(schedule, steps)]))[0]


def _evaluate(theta: Array, pairs: Changes) -> tuple[Array, Array]:
    constant, scale, exponent, gain, offset, speed, power = np.exp(theta)
    log_total, log_until = np.log(pairs.total), np.log(pairs.until)
    falling = scale * np.exp(-exponent * log_total)
    early = np.exp(-exponent * log_until)  # S_k^-s
    since = np.maximum(pairs.total[pairs.point] - pairs.until, 0.0)
    more = 1 + speed * since
    log_more = np.log(more)
    left = np.exp(-power * log_more)
    kernel = pairs.change * (1 - left)
    amplitude = pairs.change * (offset + early)
    annealed = gain * pairs.sum(kernel * (offset + early))
    slopes = (
        np.full_like(falling, constant),
        falling,
        -exponent * (log_total * falling + gain * pairs.sum(kernel * early * log_until)),
        annealed,
        gain * offset * pairs.sum(kernel),
        gain * pairs.sum(amplitude * power * left * (more - 1) / more),
        gain * pairs.sum(amplitude * power * log_more * left),
    )
    return constant + falling + annealed, np.stack(slopes, axis=1)
