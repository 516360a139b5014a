"""Forecasts from a curve that is not finished, and when to begin a decay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from public_curves import curve, grid
from public_schedules import TESTED, named

from kinfolk.schedule.advice import Advice, advise
from kinfolk.schedule.live import Forecast, NotYet, earlier_gain, forecast
from kinfolk.schedule.live_law import GAINS, RESIDUAL, Gain, fit
from kinfolk.schedule.shapes import Array, NamedSchedule, Steps, rates

COSINE = NamedSchedule(steps=4000, peak=1e-3, shape="cosine", warmup_steps=200, decay_fraction=1.0)


def law(schedule: NamedSchedule, steps: Steps, gain: float = 0.25, exponent: float = 0.5, floor: float = 2.5) -> Array:
    """A loss that follows the sum of rates and the rate itself, written down from the rate of every step."""
    every = rates(schedule) / schedule.peak
    total = np.cumsum(every)[steps - 1]
    return floor + 20 * total**-exponent + gain * every[steps - 1]


def measured(schedule: NamedSchedule, until: int, points: int = 20) -> tuple[Steps, Array]:
    steps = np.linspace(schedule.warmup_steps + 1, until, points).astype(np.int64)
    return steps, law(schedule, steps)


@pytest.mark.parametrize(("share", "within"), [(0.5, 0.03), (0.7, 0.012), (0.9, 0.005)])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_finds_the_end_of_a_law_of_its_own_kind(shape: str, share: float, within: float) -> None:
    schedule = replace(COSINE, shape=shape)
    steps, losses = measured(schedule, int(share * 4000))
    said = forecast(schedule, steps, losses)
    truth = float(law(schedule, np.array([4000]))[0])
    assert isinstance(said, Forecast)
    assert said.loss == pytest.approx(truth, rel=within)
    assert said.low <= truth <= said.high
    assert truth < 0.98 * losses[-1] or share == 0.9, "the last loss is no forecast of it"


def test_a_forecast_sees_the_schedule_and_not_only_the_curve() -> None:
    """The same curve ends lower if the rate is going to fall, and higher if it is not."""
    held = NamedSchedule(steps=4000, peak=1e-3, warmup_steps=200)
    steps, losses = measured(held, 2000)
    ends = [
        forecast(schedule, steps, losses)
        for schedule in (held, replace(held, shape="linear", decay_fraction=0.3, end_ratio=0.5),
                         replace(held, shape="linear", decay_fraction=0.3))
    ]  # fmt: skip
    constant, half, whole = (end.loss for end in ends if isinstance(end, Forecast))
    assert whole < half < constant < losses[-1]


def test_one_cell_of_the_grid_is_least_squares_with_a_prior() -> None:
    """Brute force in the textbook form: one stacked least-squares problem per cell."""
    steps, losses = measured(COSINE, 3000)
    found = fit(COSINE, steps, losses)
    from kinfolk.schedule import live_law

    total, annealed = live_law._basis([(COSINE, steps)], live_law.KERNELS)
    kept = total >= live_law.FIRST_SHARE * total[-1]
    e, k, g = 2, 1, 6
    rows = np.stack([np.ones(kept.sum()), (total[kept] / total[-1]) ** -live_law.EXPONENTS[e]], axis=1)
    wanted = losses[kept] / losses[-1] - GAINS[g] * annealed[k, kept]
    prior = np.diag([1 / live_law.FLOOR_DEVIATION, 1 / live_law.PROGRESS_DEVIATION])
    stacked = np.vstack([rows / RESIDUAL, prior])
    right = np.concatenate([wanted / RESIDUAL, prior @ [live_law.FLOOR, live_law.PROGRESS]])
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0]
    np.testing.assert_allclose(found.means[e, k, g], expected, rtol=1e-8)
    np.testing.assert_allclose(found.covariances[e], np.linalg.inv(stacked.T @ stacked), rtol=1e-6)
    assert found.weights.sum() == pytest.approx(1)


def test_too_little_to_say_anything() -> None:
    steps, losses = measured(COSINE, 3000, points=4)
    assert forecast(COSINE, steps, losses) == NotYet("4 losses after the warm-up, and 5 are needed")
    steps, losses = measured(COSINE, 700)
    assert isinstance(early := forecast(COSINE, steps, losses), NotYet) and "20%" in early.why
    warming = np.arange(10, 210, 10)
    assert isinstance(found := forecast(COSINE, warming, np.full(20, 5.0)), NotYet) and found.why.startswith("0 losses")
    assert isinstance(forecast(COSINE, np.zeros(0, dtype=np.int64), np.zeros(0)), NotYet)
    noisy = measured(COSINE, 1500)[1] * np.exp(0.3 * np.sin(np.arange(20) * 2.1))
    assert isinstance(wide := forecast(COSINE, measured(COSINE, 1500)[0], noisy), NotYet) and "wider" in wide.why


@settings(max_examples=25, deadline=None)
@given(
    peak=st.floats(1e-5, 0.05),
    level=st.floats(0.3, 12),
    stretch=st.integers(1, 50),
    shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
)
def test_units_do_not_matter(peak: float, level: float, stretch: int, shape: str) -> None:
    """Neither the unit of the loss changes anything, nor the peak where it is the only one."""
    schedule = NamedSchedule(steps=400 * stretch, peak=peak, shape=shape, decay_fraction=0.5)  # type: ignore[arg-type]
    steps = np.arange(20, 301, 20) * stretch
    losses = 2.5 + np.arange(1, 16) ** -0.5 - 0.01 * np.maximum(np.arange(15) - 10, 0)
    said, scaled = (forecast(schedule, steps, factor * losses) for factor in (1.0, level))
    assert isinstance(said, Forecast) and isinstance(scaled, Forecast)
    assert scaled.loss / level == pytest.approx(said.loss, rel=1e-9)
    assert said.low < said.loss < said.high
    other = forecast(replace(schedule, peak=2 * peak), steps, losses)
    assert isinstance(other, Forecast) and other.loss == pytest.approx(said.loss, rel=1e-9)


def test_an_earlier_curve_says_what_a_decay_brings() -> None:
    schedule = replace(COSINE, shape="linear", decay_fraction=0.3)
    steps = np.linspace(300, 4000, 40).astype(np.int64)
    rich = law(schedule, steps, gain=0.6)
    gain, used = earlier_gain([(schedule, steps, rich)])
    assert used == 0
    assert gain.centre > 0.11 and gain.deviation < Gain().deviation
    held = steps <= 2500  # before any decay, a curve says nothing of it
    plain, informed = (forecast(schedule, steps[held], rich[held], each) for each in (Gain(), gain))
    assert isinstance(plain, Forecast) and isinstance(informed, Forecast)
    truth = float(law(schedule, np.array([4000]), gain=0.6)[0])
    assert abs(informed.loss - truth) < 0.5 * abs(plain.loss - truth)
    short = schedule, steps[:2], rich[:2]
    assert earlier_gain([]) == (Gain(), None) == earlier_gain([short])
    assert earlier_gain([short, (schedule, steps, rich), short]) == (gain, 1), "the last that says something"


def test_public_curves_at_half_of_their_steps() -> None:
    """Of the 100M model: within their intervals, and three times nearer than the last loss."""
    errors, stays = [], []
    for name in TESTED:
        steps, losses = curve("100", name)
        schedule, known = rates(named(name))[: steps[-1]], steps <= steps[-1] // 2
        said = forecast(schedule, steps[known], losses[known])
        assert isinstance(said, Forecast) and said.low <= losses[-1] <= said.high, name
        errors.append(abs(np.log(losses[-1] / said.loss)))
        stays.append(abs(np.log(losses[-1] / losses[known][-1])))
    assert np.mean(errors) < 0.0125 and np.mean(errors) < np.mean(stays) / 3


TRUNK = NamedSchedule(steps=4000, peak=1e-3, warmup_steps=200)


def test_advice_compares_with_the_plan() -> None:
    steps, losses = measured(TRUNK, 2400)
    planned = replace(TRUNK, shape="linear", decay_fraction=0.2)
    advice = advise(TRUNK, steps, losses, 4000, planned)
    assert isinstance(advice, Advice)
    assert advice.keep and advice.choice == advice.planned and advice.gain == 0
    assert advice.verdict.startswith("no significant difference: keep the planned decay, linear from step 3,200")
    assert advice.begun_now.begin == 2400 == advice.now and advice.end == 4000
    assert all(2400 <= option.begin < 4000 for option in advice.options)
    assert [option.loss for option in advice.options] == sorted(option.loss for option in advice.options)
    assert advice.latest.tied and advice.latest.begin >= advice.planned.begin


def test_advice_tells_a_decay_that_is_far_too_short() -> None:
    """With a large gain that is known, ten steps of decay are worse than a fifth of the run."""
    steps, losses = measured(TRUNK, 2400)
    planned = replace(TRUNK, shape="linear", decay_fraction=10 / 4000)
    advice = advise(TRUNK, steps, losses, 4000, planned, Gain(0.15, 0.05))
    assert isinstance(advice, Advice)
    assert not advice.keep and advice.verdict.startswith("change: ")
    assert advice.choice == advice.options[0] and advice.choice.begin < 3900
    assert advice.gain == pytest.approx(advice.planned.loss - advice.choice.loss) and advice.gain > advice.tie
    assert not advice.planned.tied


def test_advice_needs_an_end_that_is_near_enough() -> None:
    steps, losses = measured(TRUNK, 2400)
    planned = replace(TRUNK, shape="linear", decay_fraction=0.2)
    assert isinstance(advise(TRUNK, steps, losses, 40_000, planned), NotYet)
    assert isinstance(past := advise(TRUNK, steps, losses, 2400, planned), NotYet) and "2,400" in past.why


def test_pairs_of_public_decays_are_held() -> None:
    """Of trunks at half of their steps: the forecast difference of two decays holds the measured one."""
    runs = [run for run in grid() if run.steps == 25_000 and run.peak >= 5e-4]
    held = []
    for peak in sorted({run.peak for run in runs}):
        some = [
            run for run in runs if run.peak == peak and "linear" in run.family and run.schedule.decay_fraction <= 0.4
        ]  # type: ignore[union-attr]
        trunk = max(some, key=lambda run: len(run.curve_steps))
        known = trunk.curve_steps <= 12_500
        shares = {round(run.schedule.decay_fraction, 2): run.loss for run in some}  # type: ignore[union-attr]
        start = replace(trunk.schedule, shape="constant", decay_fraction=0.0)  # type: ignore[arg-type]
        planned = replace(trunk.schedule, decay_fraction=0.2)  # type: ignore[arg-type]
        advice = advise(start, trunk.curve_steps[known], trunk.curve_loss[known], 25_000, planned)
        assert isinstance(advice, Advice)
        said = {round(each.share, 2): each.loss for each in advice.options if each.shape == "linear"}
        held += [abs((shares[0.4] or 0) - (shares[0.2] or 0) - said[0.4] + said[0.2]) <= advice.tie]
    assert held == [True] * 3
