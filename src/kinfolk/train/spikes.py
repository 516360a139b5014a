"""Loss spikes: a step whose loss is far above those before it, by which a run may lose what it has learnt.

Far is measured in standard deviations, as in the spike score of OLMo 2 (arXiv 2501.00656, section 3.1), but about the
line through the last losses: early in a run they fall so fast that their plain deviation would hide any spike.

What helps is what PaLM did (arXiv 2204.02311, section 5.1): go back to an earlier checkpoint and leave out the batches
from there on, for a spike comes of certain batches meeting certain weights.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np

from kinfolk.family.recipe import Spikes

WINDOW = 64
"""Losses that a new one is held against."""
LEAST = 32
"""Losses below which nothing is called a spike."""


class SpikeWatch:
    """Tells of every loss by how many standard deviations it lies above the line through the last ones.

    What it says is a function of the losses alone, so that a run that goes on says the same.
    """

    def __init__(self, settings: Spikes, losses: Iterable[float] = ()) -> None:
        """`losses` are those of the steps that were done before, oldest first."""
        self._settings = settings
        self._losses = deque(losses, maxlen=WINDOW)

    def height(self, loss: float, *, warmed_up: bool) -> float | None:
        """How far above a loss is if that is a spike, else None. A warm-up's losses fall too fast to be judged."""
        if len(self._losses) < LEAST or not warmed_up:
            return None
        losses = np.array(self._losses)
        steps = np.arange(len(losses)) - (len(losses) - 1) / 2
        slope, mean = float(steps @ losses / (steps @ steps)), float(losses.mean())
        deviation = float(np.sqrt(np.mean((losses - mean - slope * steps) ** 2)))
        expected = mean + slope * (len(losses) + 1) / 2
        above = (loss - expected) / max(deviation, 1e-3 * mean)  # losses that hardly vary make a spike of nothing
        return above if above > self._settings.deviations else None

    def note(self, loss: float) -> None:
        """Take in the loss of a step that counts. One that was rolled back is no measure for those that follow."""
        self._losses.append(loss)
