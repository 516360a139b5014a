"""Which runs count as diverged, and the prediction of divergence on sweeps whose boundary is known."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinfolk.family.peak_rules import olmo_ladder_peak
from kinfolk.schedule.divergence import fit_regression, reference_rate
from kinfolk.schedule.divergence_scores import (
    PREDICTORS,
    Says,
    Score,
    by_threshold,
    left_out_scores,
    predictions,
)
from kinfolk.schedule.labels import curve_diverged, with_high_losses
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import NamedSchedule
from kinfolk.schedule.stability import Stability, stability

SIZES = (1e5, 4e5, 1.6e6)
PEAKS = tuple(np.geomspace(2e-3, 0.5, 9).tolist())
WARMUPS = (1, 10, 50)


def run(peak: float, warmup: int = 10, size: float | None = None, loss: float | None = 3.0, steps: int = 100) -> Run:
    schedule = NamedSchedule(steps=steps, peak=peak, shape="linear", warmup_steps=warmup, decay_fraction=0.5)
    return Run(f"{size}, {peak:g}, {warmup}", schedule, loss, size=size)


def sweep(size_exponent: float = 1 / 3, warmup_exponent: float = 0.3, sizes: Sequence[float] = SIZES) -> list[Run]:
    """Runs that diverge beyond peak x size^a / (1 + warm-up)^b = constant."""
    found = []
    for size, peak, warmup in itertools.product(sizes, PEAKS, WARMUPS):
        beyond = peak * (size / 4e5) ** size_exponent / (1 + warmup) ** warmup_exponent > 0.02
        found.append(run(peak, warmup, size, None if beyond else 3.0))
    return found


def flipped(runs: Sequence[Run], which: Sequence[bool]) -> list[Run]:
    return [
        replace(one, loss=3.0 if one.diverged else None) if flip else one for one, flip in zip(runs, which, strict=True)
    ]


def f1(runs: Sequence[Run]) -> dict[tuple[str, str], float]:
    return {(part.by, score.predictor): score.f1 or 0.0 for part in left_out_scores(runs) for score in part.scores}


# scores


@pytest.mark.parametrize(
    ("size_exponent", "regression", "threshold"),
    [
        (1 / 3, (0.99, 0.99), (0.88, 0.86)),
        (0.15, (0.93, 0.93), (0.90, 0.93)),
        (0.7, (0.92, 0.88), (0.85, 0.77)),
        (1.0, (0.90, 0.83), (0.82, 0.72)),
    ],
)
def test_a_known_boundary_is_found_on_peaks_and_sizes_left_out(
    size_exponent: float, regression: tuple[float, float], threshold: tuple[float, float]
) -> None:
    """The figures of docs/schedule.md: a size rule that is not the reference's costs something."""
    found = f1(sweep(size_exponent))
    for by, learnt, simple in zip(("peak", "size"), regression, threshold, strict=True):
        assert found[by, "regression"] == pytest.approx(learnt, abs=0.006)
        assert found[by, "threshold on the peak"] == pytest.approx(simple, abs=0.006)


def test_f1_falls_with_wrong_labels() -> None:
    clean, means = f1(sweep())["peak", "regression"], []
    for share in (0.15, 0.3, 0.5):
        draws = [np.random.default_rng(seed).random(len(sweep())) < share for seed in range(3)]
        means.append(float(np.mean([f1(flipped(sweep(), draw.tolist()))["peak", "regression"] for draw in draws])))
    assert clean - 0.05 > means[0] > means[1] + 0.05 > means[2] + 0.1


@pytest.mark.parametrize("name", list(PREDICTORS))
@pytest.mark.parametrize("by", ["peak", "size"])
def test_nothing_is_learnt_from_the_group_that_is_left_out(name: str, by: str) -> None:
    runs = sweep()
    groups = [one.peak if by == "peak" else one.size for one in runs]
    said = predictions(runs, groups, PREDICTORS[name])
    assert None not in said
    for group in set(groups):
        own = [of == group for of in groups]
        again = predictions(flipped(runs, own), groups, PREDICTORS[name])
        assert [one for one, mine in zip(again, own, strict=True) if mine] == [
            one for one, mine in zip(said, own, strict=True) if mine
        ]


def test_groups_without_which_too_little_is_left_are_skipped() -> None:
    runs = [run(1e-3, warmup) for warmup in range(4)] + [run(2e-3, 1, loss=None)]
    runs += [run(4e-3, warmup, loss=None) for warmup in range(3)]
    groups = [one.peak for one in runs]

    def learn(seen: Sequence[Run]) -> Says:
        assert len({one.peak for one in seen}) == 2
        return lambda one: True

    # Without the first peak nothing stable is left, without the last one diverged run.
    assert predictions(runs, groups, learn) == [None] * 4 + [True] + [None] * 3
    (part,) = left_out_scores(runs)
    assert (part.by, part.groups, part.judged, part.skipped) == ("peak", 3, 1, 7)
    assert left_out_scores(runs[:5]) == ()
    assert left_out_scores([run(1e-3), run(1e-3)]) == ()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_scores_are_shares(pairs: list[tuple[bool, bool]]) -> None:
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    score = Score("x", *counts)
    alarms, diverged = [true for said, true in pairs if said], [said for said, true in pairs if true]
    assert score.precision == (pytest.approx(np.mean(alarms)) if alarms else None)
    assert score.recall == (pytest.approx(np.mean(diverged)) if diverged else None)
    if score.precision and score.recall:
        assert score.f1 == pytest.approx(2 / (1 / score.precision + 1 / score.recall))
    else:
        assert not score.f1 and (score.f1 is None) == (not alarms and not diverged)


def test_the_threshold_makes_the_fewest_errors() -> None:
    labels = {1e-3: 3.0, 2e-3: 3.0, 4e-3: None, 8e-3: 3.0, 1.6e-2: None, 3.2e-2: None}
    says = by_threshold([run(peak, loss=loss) for peak, loss in labels.items()])
    # Both between 2e-3 and 4e-3 and between 8e-3 and 1.6e-2 there is one error; the later cut is taken.
    assert [says(run(peak)) for peak in labels] == [False] * 4 + [True] * 2
    clear = by_threshold([run(1e-3), run(4e-3, loss=None)])
    assert clear(run(2.01e-3)) and not clear(run(1.99e-3))


# the regression


def test_a_model_eight_times_as_large_is_as_risky_at_half_the_peak() -> None:
    regression = fit_regression(sweep())
    assert regression is not None and regression.sized
    assert reference_rate(8e5) == pytest.approx(reference_rate(1e5) / 2) == olmo_ladder_peak(8e5)
    small = regression.probability(run(0.02).schedule, 1e5)
    assert regression.probability(run(0.01).schedule, 8e5) == pytest.approx(small)
    assert regression.probability(run(0.02).schedule, 8e5) > small + 0.1
    for warmup, size in itertools.product(WARMUPS, SIZES):
        boundary = regression.boundary(warmup, size)
        assert boundary is not None
        assert regression.probability(run(boundary, warmup).schedule, size) == pytest.approx(0.5)
        assert boundary == pytest.approx(0.02 * (size / 4e5) ** (-1 / 3) * (1 + warmup) ** 0.3, rel=0.4)


def test_one_size_is_as_none() -> None:
    one = sweep(sizes=(4e5,))
    named, nameless = fit_regression(one), fit_regression([replace(each, size=None) for each in one])
    assert named is not None and nameless is not None and not nameless.sized
    for each in one:
        known, unknown = named.probability(each.schedule, 4e5), nameless.probability(each.schedule)
        assert known == pytest.approx(unknown, abs=1e-5)
        assert nameless.probability(each.schedule, 1e9) == unknown
    assert fit_regression(sweep()[:3]) is None


def test_a_warmup_that_all_runs_share_says_nothing_of_others() -> None:
    same = [run(peak, 10, loss=None if peak > 0.02 else 3.0) for peak in PEAKS]
    regression = fit_regression(same)
    assert regression is not None
    chances = [regression.probability(run(0.02, warmup).schedule) for warmup in (10, 50)]
    # Only the rise is lower.
    assert 0.2 < chances[1] < chances[0] < 0.6


def test_the_optimum_is_that_of_the_penalised_likelihood() -> None:
    """By its gradient, written anew."""
    runs = sweep(sizes=(1e5, 1.6e6))
    regression = fit_regression(runs)
    assert regression is not None
    x = []
    for one in runs:
        assert isinstance(one.schedule, NamedSchedule) and one.size is not None
        relative, warmup = one.schedule.peak / reference_rate(one.size), one.schedule.warmup_steps
        x.append([math.log(relative), math.log(1 + warmup), math.log(relative / max(warmup, 1))])
    standard = (np.array(x) - regression.centre) / regression.scale
    assert standard.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-12)
    assert standard.std(axis=0) == pytest.approx([1, 1, 1])
    missed = np.array([one.diverged - regression.probability(one.schedule, one.size) for one in runs])
    assert missed.sum() == pytest.approx(0, abs=1e-3)
    assert missed @ standard == pytest.approx(regression.weights, abs=1e-3)


# limits


def test_the_cap_is_that_of_the_nearest_size_that_is_not_larger() -> None:
    runs = [run(0.04, size=1e5), run(0.08, size=1e5, loss=None), run(0.02, size=4e5), run(0.03, size=4e5)]
    runs.append(run(0.01, size=1e6, loss=None))
    seen = stability(runs)
    assert [limits.size for limits in seen.sizes] == [1e5, 4e5, 1e6]
    for size, largest in ((1e4, 0.04), (1e5, 0.04), (3.9e5, 0.04), (4e5, 0.03), (1e6, 0.03), (None, 0.03)):
        assert seen.limits(size).largest_stable == largest
        assert seen.risk(run(1.49 * largest).schedule, size)[0] != "refused"
        assert seen.risk(run(1.51 * largest).schedule, size)[0] == "refused"
    assert seen.regression is None and seen.largest_stable == 0.04 and seen.smallest_diverged == 0.01
    risks = [seen.risk(run(peak).schedule, 1e5)[0] for peak in (0.04, 0.05, 0.061)]
    assert risks == ["low", "unknown", "refused"]


def test_laws_that_were_written_before_sizes_are_still_read() -> None:
    old = Stability.model_validate(
        {"largest_stable": 2e-3, "smallest_diverged": 2.5e-3, "diverged": 1, "regression": None}
    )
    assert [old.risk(run(peak).schedule, 1e8)[0] for peak in (1e-3, 2.2e-3, 2.6e-3, 4e-3)] == [
        *("low", "unknown", "high", "refused"),
    ]


def test_where_runs_were_stopped() -> None:
    stopped = [replace(run(0.5, size=1e5, loss=None), stopped_at=at) for at in (10, 30, 20)]
    seen = stability([run(0.01, size=1e5), *stopped, run(0.6, size=1e5, loss=None)])
    assert seen.sizes[0].stopped == 0.2
    assert stability([run(0.01, size=1e5)]).sizes[0].stopped is None


# labels


def test_a_high_loss_is_judged_within_its_size_and_horizon() -> None:
    runs = [run(1e-3, size=1e8, loss=2.0), run(2e-3, size=1e8, loss=3.1), run(4e-3, size=1e8, loss=2.9)]
    runs += [run(1e-3, size=1e5, loss=3.6), run(1e-3, size=1e5, loss=5.3)]
    runs += [run(1e-3, size=1e8, loss=3.2, steps=10), run(2e-3, size=1e8, loss=4.9, steps=10)]
    runs += [run(1e-3, size=1e8, loss=3.1, steps=400), run(2e-3, size=1e8, loss=None)]
    wanted = [False, True, False, False, False, False, True, True, True]
    assert [one.diverged for one in with_high_losses(runs)] == wanted
    # 5.3 is within 1.5 times 3.6; a long run is held against the best shorter one, a short one never against a longer.
    assert [one.diverged for one in with_high_losses([replace(one, size=None) for one in runs])][:2] == [False, True]


@pytest.mark.parametrize(
    ("losses", "warmup", "diverged"),
    [
        ((7.0, 6.0, 5.0, 4.0), 1, False),
        ((7.0, 6.0, math.nan, 4.0), 1, True),
        ((7.0, 6.0, 5.0, math.inf), 1, True),
        ((7.0, 7.3, 6.9, 7.1), 1, True),  # above its beginning
        ((7.0, 6.0, 7.2, 5.0), 1, False),  # a spike that is over
        ((6.9, 6.0, 5.0, 6.6), 1, True),  # far above its best
        ((7.0, 7.1), 5, False),  # still in the warm-up
        ((), 5, False),
    ],
)
def test_curves_that_diverged(losses: tuple[float, ...], warmup: int, diverged: bool) -> None:
    steps = np.arange(len(losses), dtype=np.int64)
    assert curve_diverged(steps, np.array(losses), warmup) is diverged


def test_a_curve_without_its_beginning_is_not_held_against_it() -> None:
    steps = np.array([100, 200, 300])
    assert not curve_diverged(steps, np.array([4.0, 3.9, 4.1]), 50)
    assert curve_diverged(steps, np.array([4.0, 3.9, 4.1]), 100)
