"""Steps at which a loss leaps."""

import math
from collections import deque

from kinfolk.report.metrics import Points

WINDOW = 128
"""Values that one is held against; OLMo 2 takes 1,000, of runs that are long enough not to fall much meanwhile."""

LEAST = 50
"""Values that must have come before: the beginning of a curve falls too fast to say anything."""

LASTING = 3
"""Steps in a row that make a leap; a single one is a batch of odd text."""

DEVIATIONS = 7.0


def spikes(points: Points) -> list[int]:
    """First steps of leaps: values in a row, each seven standard deviations or more above the mean of those before.

    So OLMo 2 counts spikes (arXiv 2501.00656), there both ways, each value for itself, and over a longer window.
    A curve that falls only makes this slower to speak; after `LEAST` steps above it, a level is the usual one.
    """
    before: deque[float] = deque(maxlen=WINDOW)
    total = squares = 0.0
    leap: list[int] = []
    found: list[int] = []
    for step, value in points:
        if not leap and len(before) >= LEAST:
            mean = total / len(before)
            deviation = math.sqrt(max(squares / len(before) - mean**2, 0.0))
            # A curve that hardly moves at all has no deviation to speak of.
            threshold = mean + DEVIATIONS * max(deviation, 1e-3 * abs(mean))
        leap = [*leap, step] if len(before) >= LEAST and value > threshold else []
        if len(leap) == LASTING:
            found.append(leap[0])
        if len(leap) == LEAST:
            leap, total, squares = [], 0.0, 0.0
            before.clear()
        if not leap:
            gone = before[0] if len(before) == WINDOW else 0.0
            total, squares = total + value - gone, squares + value**2 - gone**2
            before.append(value)
    return found
