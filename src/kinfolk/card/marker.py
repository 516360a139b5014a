"""A card's last line, by which kinfolk knows a card of its own: one that somebody has edited is never written over."""

import hashlib
import re

_MARKER = re.compile(r"<!-- Written by kinfolk; SHA-256 of the text above: ([0-9a-f]{64}) -->\n\Z")


def signed(text: str) -> str:
    """The text with a last line that holds its hash; it is a comment, which no reader of Markdown shows."""
    text = text.rstrip("\n") + "\n\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}<!-- Written by kinfolk; SHA-256 of the text above: {digest} -->\n"


def is_unedited(text: str) -> bool:
    """Whether a card is as kinfolk wrote it.

    >>> is_unedited(signed("# A card")), is_unedited(signed("# A card").replace("A", "My")), is_unedited("# A card")
    (True, False, False)
    """
    found = _MARKER.search(text)
    return found is not None and hashlib.sha256(text[: found.start()].encode()).hexdigest() == found[1]


def unsigned(text: str) -> str:
    """A card without its last line, if that is the hash."""
    return _MARKER.sub("", text)
