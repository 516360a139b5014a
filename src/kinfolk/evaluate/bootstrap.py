"""Intervals over documents or items: tokens of one document are not independent, and so whole documents are redrawn."""

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Below this many documents a bootstrap over them says nothing."""

_RESAMPLES = 1000


def ratio_interval(
    numerators: NDArray[np.float64], denominators: NDArray[np.number]
) -> tuple[float | None, float | None]:
    """The 90 % percentile interval of sum(numerators) / sum(denominators), both (documents,).

    The draws depend on the number of documents alone, so the same figures give the same interval, and those of two
    models on the same documents are of the same draws. (None, None) for fewer than five documents.
    """
    if len(numerators) < FEWEST:
        return None, None
    generator = np.random.default_rng(0)
    ratios = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = generator.integers(0, len(numerators), len(numerators))
        ratios[resample] = numerators[drawn].sum() / denominators[drawn].sum()
    low, high = np.percentile(ratios, [5, 95])
    return float(low), float(high)
