"""JSON that somebody else may have written."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for whatever is none, also where it is nested too deeply to be read.

    Python's own reader tells of depth by RecursionError, which who expects broken JSON does not expect.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
