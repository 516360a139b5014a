"""The budget arithmetic of arXiv 2504.00623 (section 1.1 of the growth spec), and the plan as JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family, preset_names
from kinfolk.family.shapes import growth_obstacles
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document
from kinfolk.plan.stages import Continue, Dynamics, Grow, Scratch
from kinfolk.plan.strategies import independent, plan_family, progressive
from kinfolk.train.rate import learning_rate


def ladder(*members: float | tuple[float, float], **fields: Any) -> Family:
    """A family of bare sizes, parameters or (parameters, tokens), in which finished members grow."""
    pairs = [member if isinstance(member, tuple) else (member, None) for member in members]
    listed = [{"name": f"m{i}", "parameters": n, "tokens": t} for i, (n, t) in enumerate(pairs)]
    fields = {"recipe": {"tokens_per_step": 256}, "growth": {"start": "finished"}, **fields}
    return Family.model_validate({"name": "ladder", "members": listed, **fields})


def plan_of(family: Family) -> dict[str, Any]:
    return plan_document(family, plan_family(family))


@pytest.mark.parametrize(
    ("family", "billions", "saving"),
    [
        (ladder(1e9, 2e9, 4e9, 8e9), [20, 30, 60, 120], 21 / 85),
        (ladder(1e9, 2e9, 4e9, 8e9, tokens_per_parameter=40), [40, 60, 120, 240], 21 / 85),
        (ladder(*[(n * 1e9, 64e9) for n in (1, 2, 4, 8)]), [64, 32, 32, 32], 7 / 15),
        (ladder(1e9, 3e9, 8e9), [20, 160 / 3, 137.5], 10 / 74),
        (ladder(1e9, 2e9, 4e9, 8e9, parent_credit=0), [20, 40, 80, 160], 0),
        (ladder(1e9, 2e9, 4e9, 8e9, strategy="independent"), [20, 40, 80, 160], 0),
        (ladder(1e9), [20], 0),
    ],
)
def test_published_ladders(family: Family, billions: list[float], saving: float) -> None:
    document = plan_of(family)
    assert [stage["tokens"] / 1e9 for stage in document["stages"]] == pytest.approx(billions, rel=1e-6)
    assert document["saving"] == pytest.approx(saving, abs=1e-6)
    if saving == 0:
        assert document["saving"] == 0


def test_the_savings_that_people_quote() -> None:
    assert round(plan_of(ladder(1e9, 2e9, 4e9, 8e9))["saving"], 3) == 0.247
    assert round(plan_of(ladder(1e9, 3e9, 8e9))["saving"], 3) == 0.135
    assert round(plan_of(ladder(*[(n * 1e9, 64e9) for n in (1, 2, 4, 8)]))["saving"], 3) == 0.467


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1.05, 8), min_size=1, max_size=5),
    st.floats(1e3, 1e9),
    st.floats(1, 200),
    st.floats(0, 1),
)
def test_a_chain_costs_what_its_top_costs_alone(
    ratios: list[float], smallest: float, per_parameter: float, credit: float
) -> None:
    sizes = [smallest]
    for ratio in ratios:
        sizes.append(sizes[-1] * ratio)
    family = ladder(*sizes, tokens_per_parameter=per_parameter)
    document = plan_of(family)
    half_steps = sum(6 * size * 256 / 2 for size in sizes)
    # A stage of less than a step still takes one.
    whole_steps = sum(6 * stage["parameters"]["counted"] * 256 for stage in document["stages"] if stage["steps"] == 1)
    top = 6 * sizes[-1] * per_parameter * sizes[-1]
    assert abs(document["total_flops"] - top) <= half_steps + whole_steps + 1e-9 * top
    shared = plan_of(ladder(*sizes, tokens_per_parameter=per_parameter, parent_credit=credit))
    # Tokens that lie half-way between two steps may be rounded to either, by how they were computed.
    one_step = 6 * sizes[-1] * 256
    assert document["total_flops"] <= shared["total_flops"] + one_step
    assert shared["total_flops"] <= document["independent_flops"] + one_step


@pytest.mark.parametrize("second", [(2e9, 10e9), (2e9, 9e9), (2e9, 1)])
def test_a_member_that_costs_no_more_than_its_parent_is_refused(second: tuple[float, float]) -> None:
    family = ladder((1e9, 20e9), second)
    with pytest.raises(KinfolkError) as caught:
        plan_family(family, "family.yaml")
    assert caught.value.where == "family.yaml: members[1].tokens"
    assert caught.value.fix == "give the larger member more tokens, or lower parent_credit"
    assert "m1 is meant to cost" in caught.value.problem
    assert plan_of(ladder((1e9, 20e9), second, strategy="independent"))["saving"] == 0
    assert plan_of(ladder((1e9, 20e9), second, parent_credit=0))["stages"][1]["tokens"] >= 1


def test_who_starts_from_what() -> None:
    family = load_family("tiny", ["growth.start=finished"]).family
    names = [member.name for member in family.members]
    chain, forest = progressive(family), independent(family)
    assert [stage.parent for stage in chain.stages] == [None, *names[:-1]]
    assert [stage.parent for stage in forest.stages] == [None] * len(names)
    assert len({stage.source.seed for stage in forest.stages if isinstance(stage.source, Scratch)}) == len(names)
    assert len({stage.source.operator.seed for stage in chain.stages if isinstance(stage.source, Grow)}) == 3
    assert [stage.name for stage in chain.lineage(names[2])] == names[:3]
    assert chain.tokens_before(names[2]) == chain.stages[0].tokens + chain.stages[1].tokens
    assert [stage.member for stage in chain.stages] == names
    with pytest.raises(KeyError):
        chain.stage("nobody")


def test_the_family_file_names_the_policy_of_every_growth() -> None:
    named = ["optimizer=asymmetric", "rates=rewarm_new", "rewarm_factor=1.5", "rewarm_steps=40", "start=undecayed"]
    late = "recipe.schedule.decay_share=0.2"
    chain = progressive(load_family("tiny", [late, *(f"growth.{each}" for each in named)]).family)
    grown = [stage.source for stage in chain.stages if isinstance(stage.source, Grow)]
    assert len(grown) == 3
    assert {source.dynamics for source in grown} == {Dynamics("asymmetric", "rewarm_new", 1.5, 40)}
    by_default = progressive(load_family("tiny", []).family).stages[-1].source
    assert isinstance(by_default, Grow) and by_default.dynamics == Dynamics("carry", "uniform", 1.3, 250)


def test_growth_from_before_the_decay() -> None:
    """Trunk and branch train together what the one stage of a finished start trains, at the same rates."""
    overrides = ["growth.start=undecayed", "recipe.schedule={warmup_share: 0.1, decay_share: 0.25}"]
    family = load_family("tiny", overrides).family
    names = [member.name for member in family.members]
    whole = progressive(family.model_copy(update={"growth": family.growth.model_copy(update={"start": "finished"})}))
    split = progressive(family)
    assert [stage.member for stage in split.stages if stage.member] == names
    assert sum(stage.tokens * stage.parameters for stage in split.stages) == sum(
        stage.tokens * stage.parameters for stage in whole.stages
    )
    for name in names[:-1]:
        branch, one = split.stage(name), whole.stage(name)
        assert isinstance(branch.source, Continue)
        trunk = split.stage(branch.source.stage)
        assert trunk.steps + branch.steps == one.steps
        rates = [
            learning_rate(stage.rate, step, stage.steps) for stage in (trunk, branch) for step in range(stage.steps)
        ]
        assert rates == [learning_rate(one.rate, step, one.steps) for step in range(one.steps)]
        grown = [stage for stage in split.stages if isinstance(stage.source, Grow) and stage.parent == trunk.name]
        assert len(grown) == 1
        assert split.tokens_before(grown[0].name) == split.tokens_before(branch.name)
    assert split.stages[-1] == replace(whole.stages[-1], source=split.stages[-1].source)
    ran: set[str | None] = {None}
    for stage in split.stages:
        assert stage.parent in ran
        ran.add(stage.name)


@pytest.mark.parametrize("schedule", [{"warmup_share": 0, "decay_share": 0}, {"warmup_share": 0.5, "decay_share": 0.5}])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_stages_too_short_to_be_split(schedule: dict[str, float], steps: int) -> None:
    recipe = {"tokens_per_step": 256, "schedule": schedule}
    family = ladder((100, 256 * steps), (1000, 256 * 100), recipe=recipe, growth={"start": "undecayed"})
    plan = plan_family(family)
    assert all(stage.steps >= 1 for stage in plan.stages)
    assert [stage.member for stage in plan.stages if stage.member] == ["m0", "m1"]
    assert sum(stage.steps for stage in plan.stages if stage.parameters == 100) == steps


def test_a_member_called_like_a_stage_is_refused() -> None:
    members = [{"name": name, "parameters": n} for name, n in (("a", 1e6), ("a-undecayed", 2e6), ("b", 4e6))]
    recipe = {"schedule": {"decay_share": 0.3}}
    document = {"name": "clash", "members": members, "growth": {"start": "undecayed"}, "recipe": recipe}
    family = Family.model_validate(document)
    with pytest.raises(KinfolkError, match="a-undecayed") as caught:
        plan_family(family, "family.yaml")
    assert caught.value.where == "family.yaml: members[1].name"


def numbers_in(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [n for inner in (value.values() if isinstance(value, dict) else value) for n in numbers_in(inner)]
    return [value]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("strategy", ["progressive", "independent"])
def test_presets_plan(preset: str, strategy: str) -> None:
    family = load_family(preset, [f"strategy={strategy}"]).family
    for smaller, larger in zip(family.members, family.members[1:], strict=False):
        assert smaller.shape and larger.shape
        assert growth_obstacles(smaller.shape, larger.shape) == []
    document = plan_of(family)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["strategy"] == strategy
    stages = document["stages"]
    for kind in ("six_nd", "matmul"):
        assert document["total"][kind] == pytest.approx(sum(stage["flops"][kind] for stage in stages), rel=1e-12)
        assert document["independent"][kind] == pytest.approx(
            sum(stage["alone"][kind] for stage in stages if stage["alone"]), rel=1e-12
        )
        assert document["savings"][kind] == pytest.approx(1 - document["total"][kind] / document["independent"][kind])
    assert (document["total_flops"], document["saving"]) == (document["total"]["six_nd"], document["savings"]["six_nd"])
    assert document["independent_flops"] == document["independent"]["six_nd"]
    assert sum(stage["share"] for stage in stages) == pytest.approx(1)
    for stage in stages:
        assert stage["tokens"] == stage["steps"] * family.recipe.tokens_per_step
        assert stage["flops"]["six_nd"] == 6 * stage["parameters"]["counted"] * stage["tokens"]
    if strategy == "independent":
        assert document["saving"] == 0
        assert set(document["savings"].values()) == {0}
    else:
        assert document["saving"] > 0.1


def test_the_paper_preset_saves_what_the_paper_says() -> None:
    """Four sizes near 1, 2, 4 and 8 B at 20 tokens per parameter: about a quarter."""
    document = plan_of(load_family("paper-1b-8b").family)
    sizes = [stage["parameters"]["total"] / 1e9 for stage in document["stages"] if stage["member"]]
    assert sizes == pytest.approx([1, 2, 4, 8], rel=0.15)
    assert document["saving"] == pytest.approx(0.25, abs=0.05)


def test_a_family_without_shapes_has_no_matmul_flops() -> None:
    document = plan_of(ladder(1e9, 2e9))
    assert document["total"]["matmul"] is None
    assert document["savings"]["matmul"] is None
    assert all(stage["shape"] is None for stage in document["stages"])
    json.dumps(document, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 200))
def test_warm_up_and_decay_fit_into_a_stage(warmup: float, decay: float, steps: int) -> None:
    assume(warmup + decay <= 1)
    schedule = {"warmup_share": warmup, "decay_share": decay}
    family = ladder((100, 256 * steps), recipe={"tokens_per_step": 256, "schedule": schedule})
    (stage,) = plan_family(family).stages
    assert stage.steps == steps
    assert stage.rate.warmup_steps + stage.rate.decay_steps <= steps
    top = stage.rate.peak * (1 + 1e-15)
    assert all(0 <= learning_rate(stage.rate, step, steps) <= top for step in range(steps))


def test_peaks_fall_with_size() -> None:
    recipe = {"tokens_per_step": 256, "peak_learning_rate": 0.01, "peak_exponent": 0.5}
    stages = plan_family(ladder(1e6, 4e6, 16e6, recipe=recipe)).stages
    assert [stage.rate.peak for stage in stages] == pytest.approx([0.01, 0.005, 0.0025])
    members = [{"name": "a", "parameters": 1e6}, {"name": "b", "parameters": 4e6, "peak_learning_rate": 0.7}]
    own = Family.model_validate({"name": "own", "members": members, "recipe": recipe, "strategy": "independent"})
    assert [stage.rate.peak for stage in plan_family(own).stages] == [0.01, 0.7]
