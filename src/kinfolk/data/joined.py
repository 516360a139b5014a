"""Several token arrays read as one, without a copy on the disk or in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class JoinedTokens:
    """Token arrays one behind the other; indexed by an array of places, as one array would be.

    >>> joined = JoinedTokens([np.array([5, 6], np.uint16), np.array([7], np.uint16)])
    >>> len(joined), joined[np.array([[2, 0]])].tolist()
    (3, [[7, 5]])
    """

    def __init__(self, parts: Sequence[NDArray[np.unsignedinteger]]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """The tokens at `places`, in its shape; IndexError outside of [0, len)."""
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"places {places.min()} to {places.max()} of {len(self)} tokens")
        which = np.searchsorted(self._ends, places, side="right")
        found = np.empty(places.shape, self._parts[0].dtype)
        for number, part in enumerate(self._parts):
            here = which == number
            found[here] = np.asarray(part)[places[here] - (self._ends[number] - len(part))]
        return found
