"""Steps at which a loss leaps."""

import math
from collections import deque

from kinfolk.report.metrics import Points

WINDOW = 1000
LEAST = 50
"""Values that must have come before; the beginning of a curve falls too fast to say anything."""

DEVIATIONS = 7.0


def spikes(points: Points) -> list[int]:
    """Steps whose value lies seven standard deviations or more above the mean of up to 1,000 values before.

    It is what the spike score of OLMo 2 (arXiv 2501.00656, section 3) counts, upwards only. Of steps in a row the first
    is given. A curve that falls only makes this slower to speak.
    """
    before: deque[float] = deque(maxlen=WINDOW)
    total = squares = 0.0
    found: list[int] = []
    in_spike = False
    for step, value in points:
        if len(before) >= LEAST:
            mean = total / len(before)
            deviation = math.sqrt(max(squares / len(before) - mean**2, 0.0))
            # A curve that hardly moves at all has no deviation to speak of.
            leaps = value - mean > DEVIATIONS * max(deviation, 1e-3 * abs(mean))
            if leaps and not in_spike:
                found.append(step)
            in_spike = leaps
        if len(before) == WINDOW:
            total, squares = total - before[0], squares - before[0] ** 2
        before.append(value)
        total, squares = total + value, squares + value**2
    return found
