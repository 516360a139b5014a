"""What one request, and all of them together, may take: no request can fill the memory or hold the server for ever."""

from dataclasses import dataclass

from kinfolk.errors import KinfolkError

MOST_MESSAGES = 256
MOST_PARTS = 256
"""Parts of one message's content."""

MOST_FIELDS = 64
"""Of any JSON object in a request."""

MOST_STOPS = 4
LONGEST_STOP = 256
"""Characters of a stop string."""

MOST_CHOICES = 16
"""Prompts times answers for each of them."""

MOST_LOGPROBS = 200_000
"""Entries of an answer's log-probabilities, which take about 300 bytes each until they are sent."""

SMALLEST_BODY = 1 << 20
BYTES_PER_TOKEN = 16
"""A body may have so many bytes for each token of the context: about three times what text and its escapes take."""


@dataclass(frozen=True)
class Limits:
    """Limits that depend on the machine. Raises KinfolkError for what is none."""

    waiting: int = 16
    """Requests that may wait while one is answered; the next one is refused."""

    generation_seconds: float = 300.0
    """After so long an answer ends where it is."""

    body_seconds: float = 10.0
    """A request must have arrived in full by then."""

    send_seconds: float = 60.0
    """A client that takes in nothing of its answer for so long is left."""

    def __post_init__(self) -> None:
        for name, good in (
            ("waiting", 0 <= self.waiting <= 10_000),
            ("generation_seconds", 0 < self.generation_seconds <= 86_400),
            ("body_seconds", 0 < self.body_seconds <= 86_400),
            ("send_seconds", 0 < self.send_seconds <= 86_400),
        ):
            if not good:
                raise KinfolkError(
                    f"{getattr(self, name)} is out of range",
                    where=name,
                    fix="let 0 to 10,000 requests wait, and give times above 0 and up to a day in seconds",
                )


def most_bytes(context: int) -> int:
    """The largest body of a request to a model of so many tokens of context."""
    return max(SMALLEST_BODY, BYTES_PER_TOKEN * context)
