import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.data.loader import batch, epochs, sequence_order, sequences_per_epoch

SEEDS = st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(per_epoch=st.integers(1, 3000), epoch=st.integers(0, 10**6), seed=SEEDS)
def test_every_epoch_is_a_permutation(per_epoch, epoch, seed):
    order = sequence_order(epoch * per_epoch, per_epoch, per_epoch, seed)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(per_epoch))


@pytest.mark.parametrize("per_epoch", range(1, 130))
def test_every_small_epoch_is_a_permutation(per_epoch):
    assert sorted(sequence_order(0, per_epoch, per_epoch, 7)) == list(range(per_epoch))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(sequence_order(e * 500, 500, 500, s)) for e in range(5) for s in range(5)}
    assert len(orders) == 25
    assert tuple(range(500)) not in orders


def test_the_order_is_as_good_as_uniform():
    """Over many seeds each sequence takes each place equally often (chi-square per degree of freedom is near 1)."""
    size, trials = 12, 4000
    orders = np.array([sequence_order(0, size, size, seed) for seed in range(trials)])
    counts = np.array([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    assert ((counts - trials / size) ** 2 / (trials / size)).sum() / (size - 1) ** 2 < 1.5


def test_neighbours_are_not_kept_together():
    steps = np.diff(sequence_order(0, 10_000, 10_000, 1))
    assert (np.abs(steps) < 10).mean() < 0.01


def test_the_order_is_the_one_that_old_runs_used():
    """A resumed run depends on these numbers: a change here is a change of data order."""
    assert sequence_order(0, 12, 10, 0).tolist() == [3, 9, 5, 2, 4, 0, 7, 8, 1, 6, 6, 3]
    assert sequence_order(10**12, 4, 10**9, 123).tolist() == [708087324, 632455034, 252244086, 352617631]


@settings(deadline=None)
@given(
    per_epoch=st.integers(1, 500), first=st.integers(0, 10**5), count=st.integers(0, 400), seed=SEEDS, data=st.data()
)
def test_a_slice_of_the_order_is_the_order_of_the_slice(per_epoch, first, count, seed, data):
    cut = data.draw(st.integers(0, count))
    whole = sequence_order(first, count, per_epoch, seed)
    parts = [sequence_order(first, cut, per_epoch, seed), sequence_order(first + cut, count - cut, per_epoch, seed)]
    assert np.array_equal(whole, np.concatenate(parts))


@settings(deadline=None)
@given(tokens=st.integers(9, 3000), length=st.integers(1, 8), first=st.integers(0, 5000), count=st.integers(1, 40))
def test_a_batch_is_what_naive_slicing_gives(tokens, length, first, count):
    stream = np.random.default_rng(tokens).integers(0, 60_000, tokens, dtype=np.uint16)
    rows = batch(stream, length, first, count, seed=3)
    order = sequence_order(first, count, sequences_per_epoch(tokens, length), 3)
    assert rows.dtype == np.int64 and rows.shape == (count, length + 1)
    for row, window in zip(rows, order, strict=True):
        assert row.tolist() == stream[window * length : window * length + length + 1].tolist()


def test_ranks_hold_the_rows_of_the_whole_batch():
    stream = np.arange(10_000, dtype=np.uint16)
    whole = batch(stream, 16, first=640, count=12, seed=5)
    for ranks in (2, 3, 4, 6):
        rows = 12 // ranks
        parts = [batch(stream, 16, 640 + rank * rows, rows, 5) for rank in range(ranks)]
        assert np.array_equal(whole, np.concatenate(parts))


def test_every_token_but_the_first_is_a_target_once_an_epoch():
    stream = np.arange(1 + 7 * 13, dtype=np.uint32)
    per_epoch = sequences_per_epoch(len(stream), 13)
    assert per_epoch == 7
    assert sorted(batch(stream, 13, 0, per_epoch, 0)[:, 1:].ravel()) == list(range(1, 92))


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2)])
def test_only_whole_sequences_count(tokens, expected):
    assert sequences_per_epoch(tokens, 8) == expected


def test_epochs_count_from_nothing():
    assert epochs(0, 40) == 0 and epochs(100, 40) == 2.5


@pytest.mark.parametrize(("first", "count", "per_epoch"), [(0, 1, 0), (-1, 1, 5), (0, -1, 5)])
def test_an_order_of_nothing_is_refused(first, count, per_epoch):
    with pytest.raises(ValueError, match="no order"):
        sequence_order(first, count, per_epoch, 0)
