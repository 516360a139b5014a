"""Maps between vocabularies from how both split the same text, and from how tokens are spelt."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist, extractOne

from kinfolk.errors import KinfolkError
from kinfolk.transfer.pieces import Pieces
from kinfolk.transfer.vocabulary import VocabularyMap, exact_map, token_map

WINDOW = 512
"""Bytes of text that are aligned at once: the work grows with the square of it."""

_CONTAINED = 0.1
"""Factor of the cost of two tokens of which one contains the other (arXiv 2410.21027)."""


def aligned_map(base: Pieces, value: Pieces, texts: Iterable[str]) -> VocabularyMap:
    """The published map of Lu et al. (arXiv 2410.21027): from alignments of the same texts split by both.

    Sequences are aligned by dynamic time warping, whose cost is the edit distance of two tokens, a tenth of it where
    one contains the other. Of the counts of aligned pairs the mean of each row (base token) is subtracted, each column
    (value token) is scaled to [0, 1], both over cells that were seen, and the best value token of a base token is kept
    with its score as weight. A column whose cells are all alike scores 1, and of equal scores that of the higher count
    is kept (our reading: neither is published). Texts are aligned in windows of about
    `WINDOW` bytes that end where both have the end of a token. Tokens that the texts lack have the weight 0.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for text in texts:
        for own, other in _windows(base, value, text):
            words = [_letters(base, index) for index in own], [_letters(value, index) for index in other]
            counts.update((own[row], other[column]) for row, column in warp(alignment_costs(*words)))
    if not counts:
        raise KinfolkError("there is no text to align the vocabularies on", fix="give some, such as the demonstrations")
    return token_map("aligned", base, value, _best(counts))


def with_nearest_spelling(known: VocabularyMap, base: Pieces, value: Pieces) -> VocabularyMap:
    """The map, and for base tokens without a value token the one of the least edit distance (MinED, arXiv 2401.10491).

    Their weight is 1 - distance / (bytes of the longer one), so that tokens with nothing in common stay unmapped. The
    last resort: it compares every such token with the whole value vocabulary.
    """
    entries = {
        place: (int(known.index[place]), float(known.weight[place]))
        for place in known.mapped.tolist()
        if base.bytes_of[place] is not None
    }
    candidates = {index: piece.decode("latin-1") for piece, index in value.id_of.items()}
    for place, piece in enumerate(base.bytes_of):
        if piece and place not in entries:
            _, share, nearest = extractOne(
                piece.decode("latin-1"), candidates, scorer=Levenshtein.normalized_similarity
            )
            entries[place] = (nearest, share)
    return token_map(f"{known.kind}, nearest spelling", base, value, entries)


def edit_distance_map(base: Pieces, value: Pieces) -> VocabularyMap:
    """Tokens of the same bytes, and the nearest spelling for the rest."""
    return with_nearest_spelling(exact_map(base, value), base, value)


def alignment_costs(own: Sequence[str], other: Sequence[str]) -> np.ndarray:
    """Edit distances (own, other), float64, a tenth of it where one string contains the other."""
    costs = cdist(own, other, scorer=Levenshtein.distance).astype(np.float64)
    inside = [[one in another or another in one for another in other] for one in own]
    return np.where(inside, _CONTAINED * costs, costs)


def warp(costs: np.ndarray) -> list[tuple[int, int]]:
    """The path of least total cost (dynamic time warping) from the first to the last cell of `costs` (rows, columns).

    A step goes down, right, or both; of equally good ones it goes both ways, then down.
    """
    rows, columns = costs.shape
    total = [[0.0] + [np.inf] * columns]  # lists: reading numbers one by one from an array is far slower
    for row in costs.tolist():
        above, here = total[-1], [np.inf]
        for column, cost in enumerate(row):
            here.append(cost + min(above[column], above[column + 1], here[column]))
        total.append(here)
    path, row, column = [], rows, columns
    while row > 0:
        path.append((row - 1, column - 1))
        steps = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        row, column = min(steps, key=lambda cell: total[cell[0]][cell[1]])
    return path[::-1]


def _best(counts: Counter[tuple[int, int]]) -> dict[int, tuple[int, float]]:
    """{base id: (value id, weight)} of counts by (base id, value id)."""
    rows: dict[int, list[int]] = {}
    for (own, _), count in counts.items():
        rows.setdefault(own, []).append(count)
    scores = {(own, other): count - sum(rows[own]) / len(rows[own]) for (own, other), count in counts.items()}
    columns: dict[int, list[float]] = {}
    for (_, other), score in scores.items():
        columns.setdefault(other, []).append(score)
    best: dict[int, tuple[float, float, int]] = {}
    for (own, other), score in sorted(scores.items()):
        low, high = min(columns[other]), max(columns[other])
        weight = (score - low) / (high - low) if high > low else 1.0
        best[own] = max(best.get(own, (0.0, -np.inf, 0)), (weight, score, other))
    return {own: (other, weight) for own, (weight, _, other) in best.items()}


def _windows(base: Pieces, value: Pieces, text: str) -> Iterator[tuple[list[int], list[int]]]:
    """Stretches of a text as (base ids, value ids), each of which both tokenizers end with the end of a token."""
    own, other = base.encode(text), value.encode(text)
    ends, other_ends = _ends(base, own), _ends(value, other)
    place = {end: index + 1 for index, end in enumerate(other_ends)}
    start = other_start = since = 0
    for index, end in enumerate(ends):
        if end in place and (end - since >= WINDOW or index == len(ends) - 1):
            yield own[start : index + 1], other[other_start : place[end]]
            start, other_start, since = index + 1, place[end], end


def _ends(pieces: Pieces, ids: Sequence[int]) -> list[int]:
    """Bytes of text up to the end of each token, without what the tokenizer put before it."""
    lengths = np.cumsum([len(pieces.bytes_of[index] or b"") for index in ids], dtype=np.int64) - len(pieces.prefix)
    return [int(length) for length in lengths]


def _letters(pieces: Pieces, index: int) -> str:
    """A token without the space before it: one character a byte."""
    return (pieces.bytes_of[index] or b"").decode("latin-1").removeprefix(" ")
