"""How much of a text a map between vocabularies speaks for."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.transfer.pieces import Pieces
from kinfolk.transfer.retokenize import Retokenizer
from kinfolk.transfer.vocabulary import VocabularyMap

MINIMUM = 0.9
"""Share of base tokens in a text that must be mapped, unless forced."""

_RETOKENIZED_TOKENS = 500
"""Of how many tokens it is counted whether the one before them changed: every one needs its text split anew."""


@dataclass(frozen=True)
class Coverage:
    """Shares of the occurrences of base tokens in a text."""

    tokens: int
    mapped: float
    """Share with a value token of weight above 0."""
    same_bytes: float
    """Share whose value token has the same bytes."""
    mean_weight: float
    retokenized: float
    """Share at which the value tokenizer splits the text before it otherwise than one base token earlier."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure_coverage(known: VocabularyMap, base: Pieces, value: Pieces, texts: Iterable[str]) -> Coverage:
    """Count over texts, best held-out responses; KinfolkError if they hold nothing."""
    split = [base.encode(text) for text in texts]
    occurrences = [index for ids in split for index in ids]
    if not occurrences:
        raise KinfolkError("there is no text to measure the coverage on", fix="give held-out responses")
    weights, others = known.weight.tolist(), known.index.tolist()
    same = sum(weights[index] > 0 and base.bytes_of[index] == value.bytes_of[others[index]] for index in occurrences)
    return Coverage(
        tokens=len(occurrences),
        mapped=sum(weights[index] > 0 for index in occurrences) / len(occurrences),
        same_bytes=same / len(occurrences),
        mean_weight=sum(weights[index] for index in occurrences) / len(occurrences),
        retokenized=_retokenized(Retokenizer(base, value), split),
    )


def check_coverage(coverage: Coverage, minimum: float = MINIMUM, force: bool = False) -> None:
    """Refuse a map that speaks for too little, unless forced; KinfolkError."""
    if coverage.mapped < minimum and not force:
        raise KinfolkError(
            f"only {coverage.mapped:.1%} of the base's tokens in the text have a value token, {minimum:.0%} are needed",
            where="vocabulary map",
            fix="use the map first-piece or edit-distance, a value network of a nearer vocabulary, or force",
        )


def _retokenized(retokenizer: Retokenizer, split: list[list[int]]) -> float:
    changed = seen = 0
    for ids in split:
        before: list[int] = []
        for length in range(1, len(ids) + 1):
            if seen == _RETOKENIZED_TOKENS:
                return changed / seen
            after, _ = retokenizer.value_ids(ids[:length])
            changed += after[: len(before)] != before
            before, seen = after, seen + 1
    return changed / seen
