"""Tokens become batches, and which tokens come when is a pure function of the seed and the sequence's global number.

Nothing is shuffled in memory and no iterator has a state to save: a resumed run, or one on another number of
processes, asks for the same numbers and gets the same sequences.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinfolk.data.joined import JoinedTokens

Tokens = NDArray[np.unsignedinteger] | JoinedTokens

_ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64


def sequences_per_epoch(tokens: int, context_length: int) -> int:
    """Number of whole training sequences in `tokens` tokens.

    Sequence j has its T = `context_length` inputs at tokens [jT, jT + T) and its targets one further on, so that every
    token but the first is a target once in an epoch; a rest shorter than a sequence is left out.
    """
    return max(0, tokens - 1) // context_length


def sequence_order(first: int, count: int, per_epoch: int, seed: int) -> NDArray[np.int64]:
    """Which sequences the global sequence numbers first ... first + count - 1 are: int64 (count,) in [0, per_epoch).

    Number i belongs to epoch i // per_epoch, and each epoch visits every sequence once in an order of its own. The
    order is a keyed pseudo-random permutation that is evaluated point by point, so it takes no memory and no start-up
    however large the corpus: a Feistel network on the smallest power of two that holds per_epoch, and whatever falls
    outside is sent through again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary
    finite domains", CT-RSA 2002). numpy's own permutation may change with its version; this is integer arithmetic that
    is written out here and must never change, because a run that is resumed depends on it.

    ValueError if per_epoch is below 1, or first or count negative.
    """
    if per_epoch < 1 or first < 0 or count < 0:
        raise ValueError(f"no order of {count} sequences from number {first} on, with {per_epoch} in an epoch")
    return _places_of(np.arange(first, first + count, dtype=np.uint64), per_epoch, seed)


def _places_of(numbers: NDArray[np.uint64], per_epoch: int, seed: int) -> NDArray[np.int64]:
    keys = _round_keys(seed, numbers // np.uint64(per_epoch))
    places = numbers % np.uint64(per_epoch)
    bits = (per_epoch - 1).bit_length()
    order = _feistel(places, keys, bits)
    outside = np.flatnonzero(order >= per_epoch)
    while outside.size:
        walked = _feistel(order[outside], keys[:, outside], bits)
        order[outside] = walked
        outside = outside[walked >= per_epoch]
    return order.astype(np.int64)


def batch(tokens: Tokens, context_length: int, first: int, count: int, seed: int) -> NDArray[np.int64]:
    """Training sequences `first` to `first + count - 1` of a run: int64 (count, context_length + 1).

    Columns [:-1] are the inputs and [1:] the targets. `tokens` is one-dimensional and may be a memory map. A rank
    takes its rows of a global batch by asking for them alone: rows a to b of batch(first, n) are
    batch(first + a, b - a).
    """
    order = sequence_order(first, count, sequences_per_epoch(len(tokens), context_length), seed)
    return _cut(tokens, order * context_length, context_length + 1)


@dataclass(frozen=True)
class Reading:
    """What one stage reads, and in which rows.

    Where a family reads patches, the data order is one of blocks: `block` sequences in one piece, which is one row of
    patches. A stage at patch level takes the blocks one by one. A stage at token level takes as many blocks as its
    sequences need and goes through them `block` times, each time by another sequence of every block, so that the
    sequences of one block do not meet in one batch. So no token is read again before all were, whatever the stages
    before read: only the rest of a stage's last block, and of the data's, stays out of an epoch.
    """

    context_length: int
    patch_size: int
    """Tokens of one position; 1 at token level, `block` at patch level."""
    block: int
    """Sequences of a block; 1 where nothing reads patches."""
    first: int
    """Global number of the stage's first sequence, a multiple of `block`."""
    sequences: int
    """Sequences of context length that the stage reads, `patch_size` to a row."""

    def blocks_per_epoch(self, tokens: int) -> int:
        """Whole blocks in so many tokens, with the targets behind the last of them."""
        return max(0, tokens - self.block) // (self.context_length * self.block)

    def epochs(self, sequences_seen: int, tokens: int) -> float:
        """How many times the training data were seen once a lineage has gone through so many sequences."""
        return epochs(sequences_seen, self.blocks_per_epoch(tokens) * self.block)


def read(tokens: Tokens, reading: Reading, first: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows `first` to `first + count - 1` of a stage: int64 (count, patch_size x (context_length + 1)).

    All but the last `patch_size` columns are inputs, all but the first `patch_size` targets. At token level without
    blocks this is `batch`, counted from the stage's first sequence.
    """
    context, block = reading.context_length, reading.block
    if block == 1:
        return batch(tokens, context, reading.first + first, count, seed)
    per_epoch = reading.blocks_per_epoch(len(tokens))
    rows = np.arange(first, first + count, dtype=np.int64)
    if reading.patch_size > 1:
        blocks, within = reading.first // block + rows, np.zeros_like(rows)
    else:
        blocks, within = _spread(rows, reading, per_epoch)
    starts = _places_of(blocks.astype(np.uint64), per_epoch, seed) * (block * context) + within * context
    return _cut(tokens, starts, reading.patch_size * (context + 1))


def _spread(rows: NDArray[np.int64], reading: Reading, per_epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block number and place in the block of each sequence of a token-level stage, epoch by epoch."""
    begin = reading.first // reading.block
    end = begin - (-reading.sequences // reading.block)
    next_epoch = (begin // per_epoch + 1) * per_epoch
    edges = np.array([begin, *range(next_epoch, end, per_epoch), end], dtype=np.int64)  # in blocks
    part = np.searchsorted((edges - begin) * reading.block, rows, side="right") - 1
    size = np.diff(edges)[part]
    offset = rows - (edges[part] - begin) * reading.block
    return edges[part] + offset % size, offset // size


def _cut(tokens: Tokens, starts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    places = starts[:, None] + np.arange(width)
    # A plain array is indexed faster than the memory map that it is.
    cut = tokens[places] if isinstance(tokens, JoinedTokens) else np.asarray(tokens)[places]
    return cut.astype(np.int64)


def epochs(sequences_seen: int, per_epoch: int) -> float:
    """How many times the training tokens were seen after so many sequences."""
    return sequences_seen / per_epoch


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Independent keys (rounds, count) for each number's epoch; unsigned arithmetic wraps, as it should."""
    of_seed = _mix(np.array([(seed + _GOLDEN) & _MASK], dtype=np.uint64))
    of_epoch = _mix(of_seed + (epoch + np.uint64(1)) * np.uint64(_GOLDEN))
    rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    return _mix(of_epoch[None, :] + rounds)


def _feistel(values: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """A keyed bijection of [0, 2^bits): each round changes one half by a hash of the other, which can be undone."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mix(high + key) & low_mask)
        else:
            high = high ^ (_mix(low + key) & high_mask)
    return (high << low_bits) | low
