"""What a stage reads where a family reads patches: text in one piece, and nothing again before all was read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.data.loader import Reading, batch, read, sequences_per_epoch

SEEDS = st.integers(0, 2**31 - 1)


def lineage(context: int, block: int, stages: list[tuple[bool, int]]) -> list[Reading]:
    """Readings of stages one after another: (at patch level?, rows)."""
    readings, first = [], 0
    for patches, rows in stages:
        sequences = rows * (block if patches else 1)
        readings.append(Reading(context, block if patches else 1, block, first, sequences))
        first += -(-sequences // block) * block
    return readings


def targets(tokens: np.ndarray, reading: Reading, seed: int) -> np.ndarray:
    """Every target of a stage; with `tokens` an arange, their places in the text."""
    rows = read(tokens, reading, 0, reading.sequences // reading.patch_size, seed)
    return rows[:, reading.patch_size :].flatten()


@settings(deadline=None, max_examples=150)
@given(
    context=st.integers(2, 5),
    block=st.integers(2, 5),
    per_epoch=st.integers(1, 12),
    rest=st.integers(0, 9),
    stages=st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=5),
    seed=SEEDS,
)
def test_no_token_is_read_twice_within_an_epoch(context, block, per_epoch, rest, stages, seed):
    """Whatever is read at patch level and whatever at token level, and however the stages cut the epochs."""
    tokens = np.arange(per_epoch * context * block + block + rest)
    readings = lineage(context, block, stages)
    whole = readings[0].blocks_per_epoch(len(tokens))
    assert whole == (len(tokens) - block) // (context * block) >= per_epoch
    seen: dict[int, list[int]] = {}
    for reading in readings:
        places = targets(tokens, reading, seed)
        assert len(places) == reading.sequences * context
        # A block's targets lie `patch_size` behind its inputs, at either level.
        blocks = (places - reading.patch_size) // (context * block)
        begin = reading.first // block
        used = -(-reading.sequences // block)
        for epoch in range(begin // whole, (begin + used - 1) // whole + 1):
            low, high = max(begin, epoch * whole), min(begin + used, (epoch + 1) * whole)
            rows_before, rows_after = (low - begin) * block * context, (high - begin) * block * context
            part = slice(rows_before, rows_after)
            assert len(np.unique(places[part])) == len(places[part])
            seen.setdefault(epoch, []).extend(np.unique(blocks[part]).tolist())
    for found in seen.values():
        assert len(found) == len(set(found)) <= whole


def test_a_lineage_reads_an_epoch_without_rest_or_overlap():
    """Two blocks at patch level, the other eight at token level: every target of the epoch comes once."""
    first, second = lineage(3, 4, [(True, 2), (False, 32)])
    tokens = np.arange(10 * 12 + 4)
    places = [targets(tokens, reading, seed=3) - reading.patch_size for reading in (first, second)]
    assert sorted(np.concatenate(places).tolist()) == list(range(120))
    assert second.epochs(second.first + second.sequences, len(tokens)) == 1


def test_a_row_of_patches_is_text_in_one_piece():
    reading = Reading(context_length=5, patch_size=4, block=4, first=8, sequences=40)
    rows = read(np.arange(400), reading, 0, 10, seed=1)
    assert rows.shape == (10, 4 * 6) and rows.dtype == np.int64
    assert (np.diff(rows, axis=1) == 1).all()
    assert (rows[:, 0] % 20 == 0).all()


def test_sequences_of_one_block_do_not_meet_in_a_batch():
    reading = Reading(context_length=8, patch_size=1, block=4, first=4 * 30, sequences=4 * 50)
    rows = read(np.arange(100 * 32 + 4), reading, 0, 200, seed=5)
    blocks = rows[:, 0] // 32
    for start in range(0, 200, 50):
        assert len(set(blocks[start : start + 50].tolist())) == 50
    assert set(blocks.tolist()) == set(blocks[:50].tolist())


@settings(deadline=None, max_examples=60)
@given(patches=st.booleans(), first=st.integers(0, 40), rows=st.integers(1, 60), seed=SEEDS, data=st.data())
def test_a_slice_of_a_stage_is_the_stage_of_the_slice(patches, first, rows, seed, data):
    """So ranks and resumed runs read what one uninterrupted process reads."""
    size = 3 if patches else 1
    reading = Reading(4, size, 3, 3 * first, rows * size)
    tokens, cut = np.arange(200), data.draw(st.integers(0, rows))
    whole = read(tokens, reading, 0, rows, seed)
    assert np.array_equal(
        whole, np.concatenate([read(tokens, reading, 0, cut, seed), read(tokens, reading, cut, rows - cut, seed)])
    )


@pytest.mark.parametrize("first", [0, 7, 60])
def test_without_patches_the_order_is_the_one_that_old_runs_used(first):
    tokens = np.random.default_rng(0).integers(500, size=203).astype(np.uint16)
    reading = Reading(5, 1, 1, first, 30)
    assert np.array_equal(read(tokens, reading, 2, 20, seed=9), batch(tokens, 5, first + 2, 20, seed=9))
    assert reading.blocks_per_epoch(len(tokens)) == sequences_per_epoch(len(tokens), 5)
