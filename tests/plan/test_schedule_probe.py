"""A probe of schedules as a plan: what it costs, that trunks are shared, and that its runs train like whole ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from documents import document
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Schedule
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document
from kinfolk.plan.schedule_probe import (
    FEWEST_STEPS,
    SHARE,
    Decay,
    Design,
    design_probe,
    own_steps,
    probe_price,
    schedule_probe,
    smallest_alone,
)
from kinfolk.plan.stages import Plan, Rate, Scratch
from kinfolk.plan.strategies import plan_family, rate_over
from kinfolk.schedule.own_runs import joined, stage_schedule
from kinfolk.schedule.shapes import NamedSchedule
from kinfolk.train.rate import learning_rate

STEPS = 2_000
SHARES = st.lists(st.integers(2, 90), min_size=2, max_size=4, unique=True)


def family(steps: int = STEPS, *, times: int = 50, **parts: Any) -> Family:
    """A member of so many steps, and one that costs `times` times as much or more."""
    made = document(**parts)
    made["members"][0]["tokens"] = steps * 64
    made["members"][1]["tokens"] = steps * 64 * times
    return Family.model_validate(made)


def design(
    shares: list[int], horizons: tuple[int, ...], warmup: int = 10, peaks: tuple[float, ...] = (1e-3,)
) -> Design:
    decays = tuple(Decay(share / 100) for share in shares)
    return Design(peaks, decays, horizons, warmup, repeated_peak=None)


def plan_of(made: Design) -> Plan:
    return schedule_probe(smallest_alone(family(), made.horizons[-1]), made)


def leaves(plan: Plan) -> list[str]:
    parents = {stage.parent for stage in plan.stages}
    return [stage.name for stage in plan.stages if stage.name not in parents]


def rates_of(plan: Plan, name: str) -> list[float]:
    """The learning rate of every step up to the end of a stage."""
    return [learning_rate(part.rate, step, part.steps) for part in plan.lineage(name) for step in range(part.steps)]


@settings(deadline=None, max_examples=30)
@given(SHARES)
def test_a_peak_costs_the_horizon_and_all_decays_but_the_shortest(shares: list[int]) -> None:
    """Section 8 of the method: T + sum of share x T over all branches but the shortest one."""
    plan = plan_of(design(shares, (1_000,)))
    assert sum(stage.steps for stage in plan.stages) == 1_000 + 10 * sum(sorted(shares)[1:])


@settings(deadline=None, max_examples=30)
@given(SHARES)
def test_a_shorter_horizon_costs_its_decays_only(shares: list[int]) -> None:
    plan = plan_of(design(shares, (500, 1_000)))
    branches = [1_000 * share // 100 for share in sorted(shares)[1:]] + [500 * share // 100 for share in shares]
    assert sum(stage.steps for stage in plan.stages) == 1_000 + sum(branches)
    assert sum(isinstance(stage.source, Scratch) for stage in plan.stages) == 1
    assert len(leaves(plan)) == 2 * len(shares)
    parents = [stage.parent for stage in plan.stages]
    names = [stage.name for stage in plan.stages]
    assert len(set(names)) == len(names) and all(
        parent is None or names.index(parent) < index for index, parent in enumerate(parents)
    )


@settings(deadline=None, max_examples=30)
@given(SHARES, st.integers(0, 60), st.sampled_from(["linear", "cosine", "1-sqrt"]), st.sampled_from([0.0, 0.1]))
def test_a_run_through_the_tree_trains_like_a_whole_one(shares: list[int], warmup: int, shape: Any, end: float) -> None:
    made = design(shares, (300, 600), warmup)
    made = replace(made, decays=tuple(Decay(each.share, shape, end) for each in made.decays))
    plan = plan_of(made)
    stages = {stage["name"]: stage for stage in plan_document(family(), plan)["stages"]}
    seen = set()
    for name in leaves(plan):
        line, steps = plan.lineage(name), sum(stage.steps for stage in plan.lineage(name))
        whole = Rate(1e-3, warmup, line[-1].steps, shape, end)
        assert rates_of(plan, name) == [learning_rate(whole, step, steps) for step in range(steps)]
        # And it is read back as what it is.
        read = joined([stage_schedule(stages[part.name]["rate"], part.steps) for part in line if part.steps])
        assert isinstance(read, NamedSchedule)
        np.testing.assert_allclose(read.rate_at(np.arange(steps)), rates_of(plan, name), rtol=1e-12)
        seen.add((steps, line[-1].steps))
    wanted = {
        (steps, min(round(share / 100 * steps), steps - max(1, warmup))) for share in shares for steps in (300, 600)
    }
    assert seen == wanted


def test_the_design_has_what_a_law_needs() -> None:
    made = family(recipe={"tokens_per_step": 64, "peak_learning_rate": 0.004, "schedule": {"decay_share": 0.9}})
    found = design_probe(made)
    assert found.peaks == (0.002, 0.004, 0.008) and found.repeated_peak == 0.004
    assert [decay.share for decay in found.decays] == [0.2, 0.9]
    assert found.horizons[0] == found.horizons[1] // 2
    plan = schedule_probe(smallest_alone(made, found.horizons[-1]), found)
    assert plan.is_trial and all(stage.member is None for stage in plan.stages)
    assert len(leaves(plan)) == 3 * 2 * 2 + 1
    assert {stage.source.seed for stage in plan.stages if isinstance(stage.source, Scratch)} == {0, 1}
    # The recipe's own schedule is among the runs, over the longest horizon.
    own = rate_over(made.recipe.schedule, found.horizons[-1], 0.004, is_grown=False)
    wanted = [learning_rate(own, step, found.horizons[-1]) for step in range(found.horizons[-1])]
    assert wanted in [rates_of(plan, name) for name in leaves(plan)]


@pytest.mark.parametrize(
    ("schedule", "decays"),
    [
        ({}, [Decay(0.2), Decay(0.95)]),
        ({"decay_share": 0.2, "decay_shape": "1-sqrt"}, [Decay(0.2, "1-sqrt"), Decay(0.6)]),
        ({"decay_share": 0.8, "decay_shape": "cosine", "end_ratio": 0.1}, [Decay(0.2), Decay(0.8, "cosine", 0.1)]),
        ({"decay_share": 0.0}, [Decay(0.2), Decay(0.6)]),
    ],
)
def test_one_decay_is_the_recipes_and_the_other_unlike_it(schedule: dict[str, Any], decays: list[Decay]) -> None:
    made = family(recipe={"tokens_per_step": 64, "schedule": schedule})
    assert list(design_probe(made).decays) == decays


def test_the_probe_is_a_small_share_of_the_build() -> None:
    """As long as the share pays for, but not shorter than a law can do with, and not longer than the member's own."""
    dear, fair, cheap = family(times=3), family(20_000, times=6), family(times=5_000)
    assert design_probe(dear).horizons[-1] == FEWEST_STEPS and probe_price(dear, design_probe(dear))["share"] > SHARE
    assert design_probe(cheap).horizons[-1] == own_steps(cheap) == STEPS
    assert probe_price(cheap, design_probe(cheap))["share"] < SHARE
    assert FEWEST_STEPS < design_probe(fair).horizons[-1] < 20_000
    assert SHARE * 0.98 < probe_price(fair, design_probe(fair))["share"] <= SHARE
    assert design_probe(fair, share=SHARE / 2).horizons[-1] == pytest.approx(design_probe(fair).horizons[-1] / 2, abs=1)


def test_the_price_is_that_of_the_stages() -> None:
    made = family()
    found = design_probe(made)
    alone = smallest_alone(made, found.horizons[-1])
    price, plan = probe_price(made, found), schedule_probe(alone, found)
    document = plan_document(alone, plan)
    assert price["flops"] == pytest.approx(document["total"])
    assert price["build_flops"] == pytest.approx(plan_document(made, plan_family(made))["total"])
    assert price["share"] == price["flops"]["matmul"] / price["build_flops"]["matmul"]
    assert price["steps"] == sum(stage.steps for stage in plan.stages)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"strategy": "trunk"},
        {"growth": {"start": "undecayed"}},
        {"patch": {"size": 2}},
        {"recipe": {"tokens_per_step": 64, "batch_warmup": {"start": 16}, "schedule": {"decay_share": 0.2}}},
    ],
)
def test_the_horizon_is_the_members_own_however_it_is_built(parts: dict[str, Any]) -> None:
    made = family(**parts)
    expected = STEPS if made.patch is None else STEPS - STEPS * 2 / 3 / 2
    assert own_steps(made) == pytest.approx(expected, abs=1)


def test_peaks_and_decays_can_be_given() -> None:
    made = family(recipe={"tokens_per_step": 64, "schedule": {"decay_share": 0.5, "decay_shape": "cosine"}})
    found = design_probe(made, peaks=[2e-3, 1e-3, 1e-3], decay_shares=[0.5, 0.3, 0.5])
    assert found.peaks == (1e-3, 2e-3) and found.decays == (Decay(0.3), Decay(0.5, "cosine"))


def test_what_cannot_be_probed() -> None:
    bare = {"members": [{"name": "a", "parameters": 1e6}], "recipe": {"tokens_per_step": 64}}
    with pytest.raises(KinfolkError, match="no shape"):
        design_probe(Family.model_validate(document(**bare)))
    with pytest.raises(KinfolkError, match="39 steps, too few"):
        design_probe(family(39))
    with pytest.raises(KinfolkError, match="two different ones"):
        design_probe(family(), peaks=[1e-3, 1e-3])
    with pytest.raises(KinfolkError, match="two different ones"):
        design_probe(family(), decay_shares=[0.2, 1.2])
    own = document()
    own["members"][0] |= {"peak_learning_rate": 1e-3, "tokens": 64_000}
    with pytest.raises(KinfolkError, match="peak of its own"):
        design_probe(Family.model_validate(own))


def test_a_family_that_is_probed_is_one_that_can_be_written_down() -> None:
    """Its record is read again when a probe goes on."""
    recipe = {
        "tokens_per_step": 64,
        "rate_transfer": {"rule": "mup", "base": "large"},
        "schedule": Schedule().model_dump(),
    }
    made = family(recipe=recipe, data={"versions": [{"name": "new", "train": [{"path": "b"}]}]})
    alone = smallest_alone(made, 100)
    assert Family.model_validate(alone.model_dump(mode="json", exclude_none=True)) == alone
    assert alone.factors(alone.members[0].shape) == made.factors(made.members[0].shape)
