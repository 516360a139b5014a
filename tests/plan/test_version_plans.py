"""Versions of the data (LR path switching, arXiv 2410.04103): costs, what each stage reads, and what may be added."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import ladder, plan_of

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family
from kinfolk.laws.choose import choose_law
from kinfolk.plan.compare import compare_strategies
from kinfolk.plan.document import plan_document
from kinfolk.plan.forecast import forecast_members
from kinfolk.plan.stages import Continue, Scratch, Token
from kinfolk.plan.strategies import plan_family
from kinfolk.train.rate import learning_rate

STRATEGIES = ("trunk", "progressive", "independent")


def recipe(decay_share: float, tokens_per_step: int = 2**16) -> dict[str, Any]:
    return {"tokens_per_step": tokens_per_step, "schedule": {"warmup_share": 0.05, "decay_share": decay_share}}


def versioned(*tokens: float | None, members: tuple = (1e9,), decay: float = 0.2, **fields: Any) -> Family:
    """A trunk with a version of the data for each of `tokens`."""
    versions = [{"name": f"v{i}", "train": [{"path": "x"}], "tokens": t} for i, t in enumerate(tokens, start=2)]
    return ladder(*members, **{"strategy": "trunk", "recipe": recipe(decay), "data": {"versions": versions}, **fields})


def test_four_versions_cost_58_percent_of_from_scratch() -> None:
    """4 + 3a of 10 units at a = 0.6, and by version; continuing the finished one costs 4 of 10."""
    document = plan_of(versioned(None, None, None, decay=0.6))
    assert 1 - document["saving"] == pytest.approx(0.58, abs=1e-5)
    rows = document["versions"]
    assert [1 - row["saving"] for row in rows] == pytest.approx([1, 2.6 / 3, 4.2 / 6, 5.8 / 10], abs=1e-5)
    assert [row["cost"]["six_nd"] / 1.2e20 for row in rows] == pytest.approx([1, 1.6, 1.6, 1.6], abs=1e-4)
    assert [row["from_scratch"]["six_nd"] / 1.2e20 for row in rows] == pytest.approx([1, 2, 3, 4], abs=1e-4)
    assert [row["members"] for row in rows] == [["m0"], ["m0-v2"], ["m0-v3"], ["m0-v4"]]
    assert sum(len(row["stages"]) for row in rows) == len(document["stages"])
    finished = plan_of(versioned(None, None, None, decay=0.6, strategy="progressive"))
    assert 1 - finished["saving"] == pytest.approx(0.4, abs=1e-5)
    assert plan_of(versioned(None, None, None, strategy="independent"))["saving"] == 0
    assert plan_of(ladder(1e9))["versions"] == []


TOKENS = st.lists(st.floats(1e7, 1e9), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(TOKENS, st.floats(0.05, 0.5), st.integers(1, 3), st.floats(0, 1), st.sampled_from([None, {}, {"size": 8}]))
def test_what_a_trunk_of_versions_costs_and_reads(
    tokens: list[float], decay: float, count: int, credit: float, patch: dict | None
) -> None:
    """C + V_2 + ... + V_n and all branches but the last; every version has then read what it would from scratch."""
    members = tuple((2.0**i * 1e6, 4.0**i * 1e8) for i in range(count))
    fields: dict[str, Any] = {
        "members": members,
        "parent_credit": credit,
        "patch": patch,
        "recipe": recipe(decay, 8192),
    }
    family, alone = versioned(*tokens, **fields), versioned(**fields)
    plan, before = plan_family(family), plan_family(alone)
    assert plan.stages[: len(before.stages)] == before.stages
    later = plan.stages[len(before.stages) :]
    size, last = later[0].parameters, before.stages[-1]
    branches = [stage for stage in later if stage.member]
    spent = sum(stage.positions for stage in later)
    # Adding a version to n: its tokens, and the rest that the branch before it had taken from the trunk.
    paid_twice = last.positions + sum(branch.positions for branch in branches[:-1])
    rounded = [max(2, round(each / 8192)) * 8192 for each in tokens]
    assert spent == sum(rounded) + paid_twice
    assert all(stage.parameters == size and stage.objective == Token() for stage in later)
    read = sum(part.tokens for part in before.lineage(last.name))
    for branch, new in zip(branches, rounded, strict=True):
        read += new
        lineage = plan.lineage(branch.name)
        assert sum(part.tokens for part in lineage) == read
        assert branch.tokens == pytest.approx(decay * new, abs=8192)
        # A whole decay on the newest data, at the end of a line that never decayed.
        rates = [(part.rate.warmup_steps, part.rate.decay_steps) for part in lineage[-3:]]
        assert rates == [(0, 0), (0, 0), (0, branch.steps)]
        assert learning_rate(branch.rate, 0, branch.steps) <= branch.rate.peak == lineage[-2].rate.peak
    for name, new in zip(("v2", "v3", "v4", "v5"), rounded, strict=False):
        assert plan.tokens_read()[(name,)] == new


def test_the_shape_of_a_trunk_with_versions() -> None:
    family = versioned(1e9, 2e9, members=(1e9, 2e9, 4e9))
    plan = plan_family(family)
    sources = {stage.name: stage.source for stage in plan.stages[6:]}
    assert sources == {
        "m2-rest": Continue("m2-undecayed"),
        "m2-v2-undecayed": Continue("m2-rest"),
        "m2-v2": Continue("m2-v2-undecayed"),
        "m2-v2-rest": Continue("m2-v2-undecayed"),
        "m2-v3-undecayed": Continue("m2-v2-rest"),
        "m2-v3": Continue("m2-v3-undecayed"),
    }
    data = [stage.data for stage in plan.stages[6:]]
    assert data == [("first",), ("v2",), ("v2",), ("v2",), ("v3",), ("v3",)]
    assert [stage.member for stage in plan.stages] == [
        *(None, "m0", None, "m1", None, "m2"),
        *(None, None, "m2-v2", None, None, "m2-v3"),
    ]


@pytest.mark.parametrize("patch", [None, {}])
def test_every_version_has_a_cursor_of_its_own(patch: dict | None) -> None:
    """The rest reads what the branch has read, token by token; the trunk goes on behind it, or begins new data."""
    plan = plan_family(versioned(1e9, 1e9, patch=patch))

    def starts(name: str) -> int:
        return plan.sequences_before(name, 256)

    def ends(name: str) -> int:
        stage = plan.stage(name)
        return starts(name) + -(-round(stage.tokens) // (256 * stage.block)) * stage.block

    for member in ("m0", "m0-v2"):
        assert starts(f"{member}-rest") == starts(member) == ends(f"{member}-undecayed") > 0
        assert plan.stage(f"{member}-rest").tokens == plan.stage(member).tokens
    assert starts("m0-v2-undecayed") == starts("m0-v3-undecayed") == 0


def test_from_scratch_on_all_data_so_far() -> None:
    family = versioned(1e9, 3e9, members=(1e9, (2e9, 4e9)), strategy="independent", patch={})
    plan = plan_family(family)
    roots = [stage for stage in plan.stages if isinstance(stage.source, Scratch)]
    assert [root.source for root in roots] == [Scratch(0), Scratch(1), Scratch(2), Scratch(3)]
    assert [root.name for root in roots] == ["m0-patch", "m1-patch", "m1-v2-patch", "m1-v3-patch"]
    members = {stage.member: stage for stage in plan.stages if stage.member}
    assert members["m1-v3"].data == ("first", "v2", "v3") and members["m1-v2"].data == ("first", "v2")
    assert members["m1-v3"].source == Continue("m1-v3-patch") and plan.stage("m1-v3-patch").data[-1] == "v3"
    read = {name: sum(part.tokens for part in plan.lineage(name)) for name in ("m1", "m1-v2", "m1-v3")}
    assert list(read.values()) == pytest.approx([4e9, 5e9, 8e9], rel=1e-3)


def test_continued_from_the_finished() -> None:
    """The rate of every version warms up again and decays, as a schedule of its own."""
    plan = plan_family(versioned(1e9, 1e9, strategy="progressive"))
    assert [stage.source for stage in plan.stages] == [Scratch(0), Continue("m0"), Continue("m0-v2")]
    for stage in plan.stages[1:]:
        rates = [learning_rate(stage.rate, step, stage.steps) for step in range(stage.steps + 1)]
        assert rates[0] < max(rates) == stage.rate.peak and rates[-1] == 0
        assert stage.rate.warmup_steps == round(0.05 * stage.steps)
        assert stage.member == stage.name


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.sampled_from(STRATEGIES), st.sampled_from([None, {"members": "all"}]), st.floats(0.05, 0.5))
def test_a_version_that_is_added_changes_no_stage(
    tokens: list[float], strategy: str, patch: dict | None, decay: float
) -> None:
    fields: dict[str, Any] = {"members": (1e6, 3e6), "strategy": strategy, "patch": patch, "decay": decay}
    whole, before = (plan_family(versioned(*some, **fields)) for some in (tokens, tokens[:-1]))
    assert whole.stages[: len(before.stages)] == before.stages
    names = [stage.name for stage in whole.stages]
    assert len(names) == len(set(names)) > len(before.stages)
    for stage in whole.stages:
        assert stage.steps >= 1 and stage.tokens == stage.steps * stage.tokens_per_step
        assert whole.sequences_before(stage.name, 256) % stage.block == 0


def test_names_that_meet_are_refused() -> None:
    for name in ("rest", "undecayed"):
        data = {"versions": [{"name": name, "train": [{"path": "x"}]}, {"name": "b", "train": [{"path": "x"}]}]}
        with pytest.raises(KinfolkError, match=r"name of two stages|another member"):
            plan_family(versioned(data=data), "family.yaml")
    members = [{"name": name, "parameters": n} for name, n in (("a-v2", 1e9), ("a", 2e9))]
    data = {"versions": [{"name": "v2", "train": [{"path": "x"}]}]}
    family = Family.model_validate(
        {"name": "clash", "members": members, "data": data, "strategy": "trunk", "recipe": recipe(0.2)}
    )
    with pytest.raises(KinfolkError, match="a-v2") as caught:
        plan_family(family, "family.yaml")
    assert caught.value.where == "family.yaml: members[0].name"


def test_epochs_are_counted_by_version() -> None:
    """Four times what a version holds is no reason to warn, whatever the line of stages reads in all; five times is."""
    family = versioned(1e9, 5e9, members=((1e9, 1e9),))
    plan = plan_family(family)

    def warnings(first: int | None, **later: int) -> list[str]:
        return plan_document(family, plan, first, version_tokens=later)["warnings"]

    assert warnings(10**9, v2=10**9, v3=10**10) == [] == warnings(None) == warnings(10**9)
    (found,) = warnings(10**9, v2=10**9, v3=10**9)
    assert "5.0 times the 1e+09 tokens of version v3 of the data" in found
    (found,) = warnings(10**8, v2=10**9, v3=10**10)
    assert "of the training data" in found
    scratch = versioned(1e9, 5e9, members=((1e9, 1e9),), strategy="independent")
    document = plan_document(scratch, plan_family(scratch), 10**9, version_tokens={"v2": 10**8, "v3": 10**8})
    assert any("of versions first, v2, v3 of the data" in each for each in document["warnings"])


def test_the_comparison_with_versions() -> None:
    rows = compare_strategies(versioned(None, None, None, decay=0.2), "family.yaml")
    costs = {row["strategy"]: row["cost"]["six_nd"] for row in rows if row["patch"] is None}
    assert costs == pytest.approx({"independent": 1, "progressive": 0.4, "trunk": 0.46}, abs=1e-4)


def test_a_version_with_little_data_is_worth_less() -> None:
    """Tokens that are read again count for less (arXiv 2305.16264); without its size nothing is said to repeat."""
    family = versioned(20e9)
    plan, law = plan_family(family), choose_law([], None)

    def worth(**sizes: Any) -> list[float | None]:
        return [member.tokens for member in forecast_members(family, plan, law, **sizes)]

    assert worth() == pytest.approx([20e9, 40e9], rel=1e-4)
    assert worth(unique_tokens=21e9)[1] == worth()[1] == worth(unique_tokens=21e9, version_tokens={"v2": 21e9})[1]
    first, second = worth(unique_tokens=21e9, version_tokens={"v2": 1e9})
    assert first == pytest.approx(20e9, rel=1e-4) and second is not None and 21e9 < second < 36e9
