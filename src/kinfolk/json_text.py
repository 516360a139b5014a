"""JSON that somebody else may have written."""

import json
from typing import Any

_MOST_DIGITS = 300
"""Of an integer that a float holds; the largest float has 309."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for whatever is none, also where it is nested too deeply to be read.

    Python's own reader tells of depth by RecursionError, and arithmetic with integers of hundreds of digits by
    OverflowError, which who expects broken JSON does not expect.

    >>> parse_json("[7, -7, 0.5]")
    [7, -7, 0.5]
    >>> parse_json("1" + 400 * "0")
    Traceback (most recent call last):
        ...
    ValueError: an integer of 401 digits
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > _MOST_DIGITS:
        raise ValueError(f"an integer of {digits:,} digits")
    return int(text)
