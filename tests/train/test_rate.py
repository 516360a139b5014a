"""Exact values of the schedule, in the manner of OLMo-core's scheduler tests."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.plan.stages import DecayShape, Rate
from kinfolk.train.rate import learning_rate

SHAPES: list[DecayShape] = ["linear", "cosine", "1-sqrt"]


def test_constant_with_warmup() -> None:
    rate = Rate(peak=10.0, warmup_steps=4_000, decay_steps=0, decay_shape="linear")
    assert learning_rate(rate, 0, 10_000) == 10.0 / 4_000
    assert learning_rate(rate, 999, 10_000) == 2.5
    assert learning_rate(rate, 1_999, 10_000) == 5.0
    assert learning_rate(rate, 3_999, 10_000) == 10.0
    assert learning_rate(rate, 4_000, 10_000) == 10.0
    assert learning_rate(rate, 9_999, 10_000) == 10.0


def test_linear_decay_to_a_fifth() -> None:
    rate = Rate(peak=10.0, warmup_steps=2_000, decay_steps=8_000, decay_shape="linear", end_ratio=0.2)
    assert learning_rate(rate, 999, 10_000) == 5.0
    assert learning_rate(rate, 1_999, 10_000) == 10.0
    assert learning_rate(rate, 2_000, 10_000) == 10.0
    assert learning_rate(rate, 4_000, 10_000) == 10.0 * (0.2 + 0.8 * 0.75)
    assert learning_rate(rate, 6_000, 10_000) == 10.0 * (0.2 + 0.8 * 0.5)
    assert learning_rate(rate, 10_000, 10_000) == 2.0


def test_cosine_decay_to_a_fifth() -> None:
    rate = Rate(peak=10.0, warmup_steps=3_000, decay_steps=7_000, decay_shape="cosine", end_ratio=0.2)
    half = (1 + math.cos(math.pi * (2_000 / 7_000))) / 2
    assert learning_rate(rate, 5_000, 10_000) == 10.0 * (0.2 + 0.8 * half)
    assert learning_rate(rate, 10_000, 10_000) == 2.0


def test_hold_and_one_minus_sqrt() -> None:
    rate = Rate(peak=10.0, warmup_steps=1_000, decay_steps=1_600, decay_shape="1-sqrt")
    assert learning_rate(rate, 8_400, 10_000) == 10.0
    assert learning_rate(rate, 8_800, 10_000) == 5.0
    assert learning_rate(rate, 9_300, 10_000) == 2.5
    assert learning_rate(rate, 10_000, 10_000) == 0.0


def test_nothing_but_the_peak() -> None:
    rate = Rate(peak=3.0, warmup_steps=0, decay_steps=0, decay_shape="linear")
    assert [learning_rate(rate, step, 3) for step in range(3)] == [3.0, 3.0, 3.0]


def test_a_single_step() -> None:
    for warmup, decay in ((0, 0), (1, 0), (0, 1)):
        assert learning_rate(Rate(2.0, warmup, decay, "linear"), 0, 1) == 2.0


@st.composite
def rates(draw: st.DrawFn) -> tuple[Rate, int]:
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    decay = draw(st.integers(0, steps - warmup))
    peak, end = draw(st.floats(1e-9, 1e3)), draw(st.floats(0, 1))
    return Rate(peak, warmup, decay, draw(st.sampled_from(SHAPES)), end), steps


@settings(max_examples=300, deadline=None)
@given(rates())
def test_bounded_monotone_and_continuous(given_rate: tuple[Rate, int]) -> None:
    rate, steps = given_rate
    values = [learning_rate(rate, step, steps) for step in range(steps + 1)]
    assert all(0 <= value <= rate.peak for value in values)
    rising, falling = values[: rate.warmup_steps], values[max(0, rate.warmup_steps - 1) :]
    assert all(before < after for before, after in pairwise(rising))
    assert all(before >= after - 1e-12 * rate.peak for before, after in pairwise(falling))
    if rate.warmup_steps:
        assert values[rate.warmup_steps - 1] == rate.peak
    hold = values[rate.warmup_steps : steps - rate.decay_steps + 1]
    assert all(value == rate.peak for value in hold)
    if rate.decay_steps:
        # One step later the schedule would be where it was told to end.
        assert values[-1] == pytest.approx(rate.peak * rate.end_ratio, abs=1e-12 * rate.peak)
    # No jump is larger than the steepest piece allows: warm-up 1/w, linear 1/d, cosine pi/2d, 1-sqrt sqrt(1/d).
    fall = {"linear": 1.0, "cosine": math.pi / 2, "1-sqrt": math.sqrt(max(1, rate.decay_steps))}[rate.decay_shape]
    steepest = max(1 / max(1, rate.warmup_steps), fall / max(1, rate.decay_steps))
    if rate.warmup_steps or rate.decay_steps:
        assert all(abs(a - b) <= rate.peak * steepest * (1 + 1e-9) for a, b in pairwise(values))
