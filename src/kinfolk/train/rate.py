"""The learning rate as a pure function of the step."""

import math

from kinfolk.plan.stages import DecayShape, Rate


def learning_rate(rate: Rate, step: float, steps: int, parts: int = 1) -> float:
    """Learning rate of optimizer step `step` (0-based) of a stage of `steps` steps.

    Under a batch-size warm-up steps are whole batches, and an optimizer step takes one of the equal `parts` of a batch,
    at 1 / sqrt(parts) of the rate (see `kinfolk.plan.batches`).

    Warm-up is linear and reaches the peak at step `warmup_steps`; the decay takes the last `decay_steps` steps; in
    between the peak holds. The last step of a full decay still moves: the end ratio would be reached one step later.

    >>> rate = Rate(peak=1.0, warmup_steps=2, decay_steps=4, decay_shape="linear")
    >>> [learning_rate(rate, step, 8) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    peak = rate.peak / math.sqrt(parts)
    if step < rate.warmup_steps:
        return peak * ((step + 1 / parts) / rate.warmup_steps)
    decayed = (step - (steps - rate.decay_steps)) / rate.decay_steps if rate.decay_steps else 0.0
    if decayed <= 0:
        return peak
    return peak * (rate.end_ratio + (1 - rate.end_ratio) * remaining(rate.decay_shape, decayed))


def remaining(shape: DecayShape, decayed: float) -> float:
    """Share of the peak that is left once the share `decayed` of a decay is over, from 1 to 0.

    >>> [remaining(shape, 0.25) for shape in ("linear", "1-sqrt")]
    [0.75, 0.5]
    """
    if shape == "cosine":
        return (1 + math.cos(math.pi * decayed)) / 2
    return 1 - (decayed if shape == "linear" else math.sqrt(decayed))
