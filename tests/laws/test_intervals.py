"""What runs can tell, how wide intervals are, and whether they hold."""

import numpy as np
import pytest
from public_data import Runs, chinchilla_240, gadre, gadre_runs
from test_fitting import TRUTH, design, noisy

from kinfolk.errors import KinfolkError
from kinfolk.laws.backtest import backtest, backtest_document
from kinfolk.laws.borrowed import ASSUMED, borrow
from kinfolk.laws.fitting import FitResult, Parameters, fit
from kinfolk.laws.identify import condition_number, identify, next_run
from kinfolk.laws.intervals import bootstrap, calibrate, fitted_range
from kinfolk.laws.published import published_law

BESIROGLU = published_law("besiroglu")
AS_FIT = FitResult(Parameters(BESIROGLU.E, BESIROGLU.A, BESIROGLU.B, BESIROGLU.alpha, BESIROGLU.beta), 0.0, 0.0, ())


@pytest.mark.parametrize(("low", "high", "wanted"), [(0, 1e9, 62), (10, 60, 147), (15, 30, 416)])
def test_condition_number_of_the_chinchilla_points(low: float, high: float, wanted: float) -> None:
    size, tokens, loss = chinchilla_240()
    inside = (tokens / size > low) & (tokens / size < high)
    runs = size[inside], tokens[inside], loss[inside]
    assert condition_number(*runs[:2], fit(*runs)) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("ratios", "wanted"), [((5, 20, 80), 56), ((10, 20, 40), 91), ((18, 22), 479), ((20,), 5e7)])
def test_condition_number_of_planned_designs(ratios: tuple[float, ...], wanted: float) -> None:
    assert condition_number(*design(6, ratios), AS_FIT) == pytest.approx(wanted, rel=0.1)


def test_runs_at_one_ratio_do_not_identify_the_law() -> None:
    size, tokens = design(8, (20,))
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(8))
    found = identify(size, tokens, fit(size, tokens, TRUTH.predict(size, tokens) * noise))
    assert not found.identified
    assert any("20 tokens per parameter" in finding for finding in found.findings)


def test_few_sizes_are_a_finding() -> None:
    size, tokens, loss = noisy(0.001, sizes=3)
    assert any("3 sizes" in finding for finding in identify(size, tokens, fit(size, tokens, loss)).findings)


def test_a_good_design_is_identified_without_a_word() -> None:
    runs = noisy(0.001)
    found = identify(*runs[:2], fit(*runs))
    assert found.identified and found.forecasts and not found.findings


def test_the_next_run_breaks_the_one_ratio() -> None:
    size, tokens = design(6, (20,))
    run = next_run(size, tokens, TRUTH)
    assert not 15 < run.tokens / run.parameters < 25
    assert 6 * run.parameters * run.tokens <= (6 * size * tokens).max() * (1 + 1e-6)
    assert 0 <= run.variance_ratio < 0.9
    # It does what it says: with the run, the design is better conditioned.
    more = np.append(size, run.parameters), np.append(tokens, run.tokens)
    result = FitResult(TRUTH, 0.0, 0.0, ())
    before, after = condition_number(size, tokens, result), condition_number(*more, result)
    assert before is not None and after is not None and after < before / 10


@pytest.mark.parametrize("ratio", [0.02, 1.0, 2e5])
def test_a_next_run_is_found_at_any_ratio(ratio: float) -> None:
    run = next_run(np.array([2e9]), np.array([2e9 * ratio]), TRUTH)
    assert 6 * run.parameters * run.tokens <= 6 * 2e9 * 2e9 * ratio * (1 + 1e-6)


def splits_of_public_ladders() -> list[tuple[float, Runs, float, float]]:
    """Cut, runs, and the reference coverage and mean width to be within."""
    chinchilla = chinchilla_240()
    found = [(cut, chinchilla, 0.65, width) for cut, width in ((1e21, 0.057), (3e20, 0.096), (1e20, 0.096))]
    for dataset, width in (("c4_original", 0.54), ("rpj", 0.48), ("rw_original", 0.78)):
        runs = gadre_runs(gadre(dataset))
        found.append((float(np.quantile(6 * runs[0] * runs[1], 0.7)), runs, 0.65, width))
    return found


def test_intervals_hold_larger_runs_of_public_ladders() -> None:
    covered = hidden = 0
    coverages = []
    for cut, runs, least, width in splits_of_public_ladders():
        (split,) = backtest(*runs, [cut])
        assert split.coverage >= least
        assert split.mean_width <= 1.2 * width
        assert split.basis == "rolling hold-out"
        coverages.append(split.coverage)
        covered, hidden = covered + split.covered, hidden + split.hidden
    assert np.mean(coverages) >= 0.85
    assert covered / hidden >= 0.8


def test_bootstrap_intervals_do_not_hold() -> None:
    size, tokens, loss = chinchilla_240()
    below = 6 * size * tokens < 1e20
    drawn = bootstrap(
        size[below], tokens[below], loss[below], fit(size[below], tokens[below], loss[below]).parameters, resamples=30
    )
    low, high = np.quantile(drawn.predictions(size[~below], tokens[~below]), [0.05, 0.95], axis=0)
    assert np.mean((loss[~below] >= low) & (loss[~below] <= high)) < 0.4


def test_a_backtest_looks_at_nothing_above_its_cut() -> None:
    size, tokens, loss = noisy(0.005, seed=4)
    cut = float(np.quantile(6 * size * tokens, 0.7))
    (plain,) = backtest(size, tokens, loss, [cut])
    spoiled = np.where(6 * size * tokens > cut, loss * 1.5, loss)
    (other,) = backtest(size, tokens, spoiled, [cut])
    assert other.covered == 0 and plain.covered > 0
    assert other.mean_width == pytest.approx(plain.mean_width, rel=1e-9)


def test_calibration_follows_the_noise() -> None:
    quiet, loud = (calibrate(*noisy(noise, seed=7, sizes=10)) for noise in (0.001, 0.02))
    assert quiet is not None and loud is not None
    assert 0 < quiet.half_width < 0.2 * loud.half_width


def test_too_few_runs_are_not_calibrated() -> None:
    size, tokens, loss = noisy(0.01)
    assert calibrate(size[:9], tokens[:9], loss[:9]) is None
    with pytest.raises(KinfolkError, match="too few"):
        backtest_document(backtest(size[:9], tokens[:9], loss[:9]))
    with pytest.raises(KinfolkError, match="below"):
        backtest(size, tokens, loss, [1e30])


def test_the_assumed_width_holds_on_public_ladders() -> None:
    """Two to four runs at random, every dearer run of the ladder forecast: nine in ten inside."""
    generator = np.random.default_rng(0)
    inside = []
    for dataset in ("c4_original", "rpj", "rw_original"):
        size, tokens, loss = gadre_runs(gadre(dataset))
        compute = 6 * size * tokens
        for _ in range(100):
            chosen = generator.choice(np.argsort(compute)[:24], generator.integers(2, 5), replace=False)
            law = borrow(BESIROGLU, size[chosen], tokens[chosen], loss[chosen])
            above = compute > compute[chosen].max() * 1.001
            half = ASSUMED.half_width_at(np.log(compute[above] / compute[chosen].max()))
            inside.append(np.abs(np.log(loss[above] / law.predict(size[above], tokens[above]))) <= half)
    assert 0.85 <= np.concatenate(inside).mean() <= 0.99


def test_intervals_widen_in_every_direction() -> None:
    """The distance is the largest of four logarithms, so no direction leaves the fitted runs at the width inside."""
    runs = fitted_range(np.array([1e8, 1e9]), np.array([2e9, 2e10]))  # 1.2e18 to 1.2e20 FLOPs, 20 tokens each
    inside, far = runs.distance(3e8, 6e9), 10.0
    assert inside == 0.0
    for size, tokens in ((1e9 * far, 2e10 / far), (1e8 / far, 2e9 * far), (1e9, 2e10 * far), (1e8, 2e9 / far)):
        assert runs.distance(size, tokens) >= np.log(far) * 0.999
    assert runs.distance(1e10, 2e11) == pytest.approx(np.log(100))  # in compute, as before
    assert runs.distance(1e10, 2e8) == pytest.approx(np.log(1000))  # in tokens per parameter
    assert runs.distance(np.array([3e8, 1e10]), np.array([6e9, 2e11])).tolist() == pytest.approx([0, np.log(100)])
    law = BESIROGLU
    assert law.fitted is not None
    low, high = law.interval(1e9, 2e10) or (0, 0)
    wide_low, wide_high = law.interval(1e6, 1e13) or (0, 0)  # as dear as a run inside, and nothing like one
    assert wide_high / wide_low > (high / low) ** 1.5
