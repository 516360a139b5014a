"""From runs that lie on a known law to a recipe."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from documents import document
from test_schedule_laws import truth

from kinfolk.family.spec import Family
from kinfolk.plan.schedule_choice import choose_schedule
from kinfolk.schedule import convergence
from kinfolk.schedule.fitted import fit_runs
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.run import Run
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.shapes import NamedSchedule

TRUE, _ = truth()
STEPS = 20_000


def loss_of(schedule: NamedSchedule) -> float:
    return float(convergence.predict(TRUE, schedule, np.array([schedule.steps]))[0])


@cache
def law(diverged: float | None = None) -> ScheduleLaw:
    """Fitted to what a probe trains; every run of the peak `diverged` and above has no loss."""
    runs = []
    for peak in (5e-4, 1e-3, 2e-3):
        for fraction in (0.2, 0.5, 0.9):
            for steps in (8_000, 16_000):
                schedule = NamedSchedule(
                    steps=steps, peak=peak, shape="linear", warmup_steps=400, decay_fraction=fraction
                )
                lost = diverged is not None and peak >= diverged
                points = np.arange(steps // 40, steps + 1, steps // 40)
                curve = convergence.predict(TRUE, schedule, points)
                runs.append(Run(str(len(runs)), schedule, None if lost else loss_of(schedule), points, curve))
    return fit_runs(Runs(tuple(runs), "test", ())).law


def family(**parts: Any) -> Family:
    made = document(**parts)
    for member, steps in zip(made["members"], (STEPS, 4 * STEPS), strict=True):
        member["tokens"] = steps * 64
    return Family.model_validate(made)


def recipe(peak: float, **schedule: Any) -> dict[str, Any]:
    return {"tokens_per_step": 64, "peak_learning_rate": peak, "schedule": {"warmup_share": 0.02, **schedule}}


def test_a_bad_recipe_is_replaced_by_one_that_is_better() -> None:
    made = family(recipe=recipe(5e-4, decay_share=0.2))
    chosen, ranking = choose_schedule(made, law())
    assert not chosen.keep_default
    built = chosen.applied(made).recipe
    assert (built.peak_learning_rate, built.schedule) == (chosen.peak_learning_rate, chosen.schedule)
    assert built.schedule.warmup_share == 0.02
    best = min(loss_of(each.schedule) for each in ranking.candidates)
    assert loss_of(ranking.choice.schedule) <= best + ranking.tie < loss_of(ranking.default.schedule)
    assert {each.schedule.steps for each in ranking.candidates} == {STEPS}
    assert {each.schedule.shape for each in ranking.candidates} == {"linear", "1-sqrt", "cosine"}


def test_shape_and_last_rate_stay_where_they_make_no_difference() -> None:
    """By itself, the law holds another end for best, by less than it can tell."""
    chosen, ranking = choose_schedule(family(recipe=recipe(5e-4, decay_share=0.2, end_ratio=0.0)), law())
    assert (chosen.schedule.decay_shape, chosen.schedule.end_ratio) == ("linear", 0.0)
    same = [each for each in ranking.tied if (each.schedule.shape, each.schedule.end_ratio) == ("linear", 0.0)]
    assert ranking.choice == same[0] and len(same) < len(ranking.tied)
    other = ranking.candidates[0].schedule
    assert (other.shape, other.end_ratio) != ("linear", 0.0) and "keeps shape and last rate" in chosen.verdict


def test_a_good_recipe_is_kept() -> None:
    chosen, _ = choose_schedule(family(recipe=recipe(5e-4, decay_share=0.2)), law())
    better = recipe(chosen.peak_learning_rate, **chosen.schedule.model_dump(exclude_none=True))
    kept, _ = choose_schedule(family(recipe=better), law())
    assert kept.keep_default and "keep the default" in kept.verdict
    assert (kept.peak_learning_rate, kept.schedule) == (chosen.peak_learning_rate, chosen.schedule)


@pytest.mark.parametrize(
    ("parts", "latest"),
    [
        ({"strategy": "trunk"}, 0.5),
        ({"growth": {"start": "undecayed"}}, 0.5),
        ({"patch": {"size": 2, "share": 0.8}}, 1 / 3),
    ],
)
def test_what_the_family_refuses_is_no_candidate(parts: dict[str, Any], latest: float) -> None:
    made = family(recipe=recipe(5e-4, decay_share=0.2), **parts)
    chosen, ranking = choose_schedule(made, law())
    assert 0.2 < max(each.schedule.decay_fraction for each in ranking.candidates) <= latest + 1e-3
    assert chosen.schedule.decay_share <= latest
    chosen.applied(made)  # is valid


def test_peaks_that_diverged_are_no_candidates() -> None:
    chosen, ranking = choose_schedule(family(recipe=recipe(2e-3, decay_share=0.5)), law(diverged=2e-3))
    assert max(each.schedule.peak for each in ranking.candidates) <= 1e-3
    assert not chosen.keep_default and chosen.peak_learning_rate <= 1e-3


def test_what_was_not_probed_is_said() -> None:
    _, ranking = choose_schedule(family(recipe=recipe(5e-4, decay_share=0.2)), law())
    said = " ".join(ranking.warnings)
    assert "does not vary" in said and "noise is assumed" in said and "16,000 of the member's 20,000 steps" in said
