"""The trunk's budget (growth spec, section 1.1) and the accounting of patches (patch spec, sections 2 to 4)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import ladder, plan_of

from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family
from kinfolk.family.spec import Family
from kinfolk.plan.compare import compare_strategies
from kinfolk.plan.document import plan_document
from kinfolk.plan.stages import Continue, Grow, Patch, Plan, Scratch, Stage, Token
from kinfolk.plan.strategies import plan_family
from kinfolk.train.rate import learning_rate

BILLIONS = (1e9, 2e9, 4e9, 8e9)
LARGE_STEPS = {"tokens_per_step": 2**20}


def recipe(decay_share: float = 0.2, **fields: Any) -> dict[str, Any]:
    return {**LARGE_STEPS, "schedule": {"warmup_share": 0.05, "decay_share": decay_share}, **fields}


def trunk_of(*members: Any, **fields: Any) -> Family:
    return ladder(*members, strategy="trunk", **{"recipe": recipe(), **fields})


@pytest.mark.parametrize(("decay_share", "saving"), [(0.2, 0.209), (0.25, 0.200)])
def test_the_branches_are_counted(decay_share: float, saving: float) -> None:
    """C_k + b_1 + ... + b_(k-1): 20.9 %, not 24.7 %, with branches of a fifth; 20.0 % with a quarter."""
    document = plan_of(trunk_of(*BILLIONS, recipe=recipe(decay_share)))
    assert document["saving"] == pytest.approx(saving, abs=5e-4)
    chain = plan_of(ladder(*BILLIONS, recipe=recipe(decay_share)))
    branches = [stage["flops"]["six_nd"] for stage in document["stages"] if stage["member"]]
    assert document["total_flops"] == pytest.approx(chain["total_flops"] + sum(branches[:-1]), rel=1e-4)


def test_every_member_has_spent_its_budget_when_it_ships() -> None:
    family = trunk_of(*BILLIONS)
    plan = plan_family(family)
    for member in family.members:
        lineage = plan.lineage(member.name)
        spent = sum(6 * stage.parameters * stage.positions for stage in lineage)
        assert spent == pytest.approx(6 * family.parameters(member) * family.tokens(member), rel=1e-4)


def test_the_shape_of_a_trunk() -> None:
    family = trunk_of(*BILLIONS)
    plan = plan_family(family)
    trunks, branches = plan.stages[::2], plan.stages[1::2]
    for index, (trunk, branch) in enumerate(zip(trunks, branches, strict=True)):
        assert (trunk.member, branch.member) == (None, f"m{index}")
        assert branch.source == Continue(trunk.name)
        assert trunk.rate.decay_steps == 0 and branch.rate.warmup_steps == 0
        assert branch.rate.decay_steps == branch.steps
        rates = [learning_rate(trunk.rate, step, trunk.steps) for step in (trunk.rate.warmup_steps, trunk.steps - 1)]
        assert rates == [trunk.rate.peak] * 2
        assert learning_rate(branch.rate, branch.steps, branch.steps) == 0
        if index == 0:
            assert isinstance(trunk.source, Scratch)
        else:
            assert isinstance(trunk.source, Grow) and trunk.source.stage == trunks[index - 1].name


def test_a_grown_stage_may_warm_up_for_less() -> None:
    short = {**LARGE_STEPS, "schedule": {"warmup_share": 0.1, "rewarmup_share": 0.01, "decay_share": 0.2}}
    stages = [stage for stage in plan_family(trunk_of(*BILLIONS, recipe=short)).stages if not stage.member]
    shares = [stage.rate.warmup_steps / stage.steps for stage in stages]
    assert shares[0] > 0.1 and max(shares[1:]) < 0.015


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(1.1, 6), min_size=1, max_size=4),
    st.floats(100, 1e6),
    st.floats(0.01, 0.5),
    st.floats(0, 1),
    st.sampled_from([None, {}, {"members": "all"}, {"members": "all", "optimizer": "reset"}, {"members": ["m1"]}]),
)
def test_a_larger_member_changes_no_stage_that_there_was(
    ratios: list[float], smallest: float, decay: float, credit: float, patch: dict | None
) -> None:
    """What `kinfolk build` relies on when a finished family is extended; also for stages of a single step."""
    sizes = [smallest]
    for ratio in ratios:
        sizes.append(sizes[-1] * ratio)
    fields: dict[str, Any] = {"parent_credit": credit, "patch": patch}
    fields["recipe"] = {"tokens_per_step": 256 * 8, "schedule": {"warmup_share": 0.05, "decay_share": decay}}
    if patch and patch.get("members") == ["m1"] and len(sizes) == 2:
        fields["patch"] = patch = None
    whole = plan_family(trunk_of(*sizes, **fields))
    before = plan_family(trunk_of(*sizes[:-1], **fields))
    assert whole.stages[: len(before.stages)] == before.stages
    for stage in whole.stages:
        assert stage.steps >= 1 and stage.tokens == stage.steps * stage.tokens_per_step
        assert stage.rate.decay_steps == (stage.steps if stage.member else 0)
        assert stage.rows_per_step(256) * 256 * stage.patch_size == stage.tokens_per_step


def test_names_must_not_meet() -> None:
    members = [{"name": name, "parameters": n} for name, n in (("a", 1e9), ("a-patch", 2e9))]
    family = Family.model_validate({"name": "clash", "members": members, "patch": {}, "recipe": recipe()})
    with pytest.raises(KinfolkError, match="a-patch") as caught:
        plan_family(family, "family.yaml")
    assert caught.value.where == "family.yaml: members[1].name"


# Patches


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 16), st.floats(0.05, 0.95), st.sampled_from(["carry", "reset"]))
def test_the_cost_is_lambda_over_k_plus_the_rest(size: int, share: float, optimizer: str) -> None:
    """6ND and exact matmul FLOPs, head included, of each member alone, whatever is held constant at the switch."""
    steps = {"tokens_per_step": 256 * size * 2, "schedule": {"warmup_share": 0, "decay_share": 0}}
    members = [{"name": "one", "tokens": 6e11, "shape": load_family("tiny").family.members[-1].shape.model_dump()}]
    document = {"name": "one", "members": members, "strategy": "independent", "recipe": steps}
    patch = {"size": size, "share": share, "optimizer": optimizer}
    family = Family.model_validate({**document, "patch": patch})
    costs = plan_document(family, plan_family(family))
    expected = share / size + 1 - share
    for kind in ("six_nd", "matmul"):
        assert 1 - costs["savings"][kind] == pytest.approx(expected, rel=1e-3)
    first, second = costs["stages"]
    assert first["tokens"] / (first["tokens"] + second["tokens"]) == pytest.approx(share, rel=1e-3)
    assert first["positions"] * size == first["tokens"] and second["positions"] == second["tokens"]
    if optimizer == "carry":
        step_share = costs["patch"]["step_share"]
        assert first["steps"] / (first["steps"] + second["steps"]) == pytest.approx(step_share, rel=1e-3)
        assert first["tokens_per_step"] == size * second["tokens_per_step"]
    else:
        assert first["tokens_per_step"] == second["tokens_per_step"]
    assert costs["data"]["tokens_read"] == pytest.approx(6e11, rel=1e-3)


def test_the_reference_run() -> None:
    """Shao et al.: 90,000 patch steps and 45,000 token steps of 2,097,152 tokens; 283.1 B tokens, K 4, lambda 2/3."""
    steps = {"tokens_per_step": 2_097_152, "schedule": {"warmup_share": 0.01, "decay_share": 0.9}}
    patch = {"size": 4, "share": 2 / 3, "optimizer": "reset"}
    model = {"context_length": 2048}
    plan = plan_family(ladder((370e6, 135_000 * 2_097_152), recipe=steps, patch=patch, model=model))
    assert [stage.steps for stage in plan.stages] == [90_000, 45_000]
    assert [stage.rows_per_step(2048) for stage in plan.stages] == [256, 1024]
    assert [stage.objective for stage in plan.stages] == [Patch(4), Token()]
    assert plan.stages[1].source == Continue(plan.stages[0].name, "reset")
    for stage in plan.stages:  # each with a schedule of its own
        assert stage.rate.decay_steps == 0.9 * stage.steps


def test_one_schedule_over_both_parts_and_the_switch_before_the_decay() -> None:
    tokens, fields = 256 * 10_000, {"recipe": {"tokens_per_step": 256, "schedule": {"decay_share": 0.3}}}
    patched = plan_family(ladder((1e6, tokens), patch={"size": 4, "share": 2 / 3}, **fields)).stages
    assert [stage.steps for stage in patched] == [1667, 3333]
    (plain,) = plan_family(ladder((1e6, 256 * 5000), **fields)).stages
    rates = [learning_rate(stage.rate, step, stage.steps) for stage in patched for step in range(stage.steps)]
    assert rates == [learning_rate(plain.rate, step, plain.steps) for step in range(plain.steps)]
    assert patched[0].rate.decay_steps == 0 and patched[1].source == Continue("m0-patch")


def blocks(plan: Plan) -> set[int]:
    return {stage.block for stage in plan.stages}


@pytest.mark.parametrize("strategy", ["independent", "progressive", "trunk"])
@pytest.mark.parametrize(("members", "opened"), [("scratch", None), ("all", 4), (["m1", "m3"], 2)])
def test_which_stages_open_with_patches(strategy: str, members: Any, opened: int | None) -> None:
    patch = {"members": members}
    plan = plan_family(ladder(*BILLIONS, strategy=strategy, recipe=recipe(), patch=patch))
    found = [stage for stage in plan.stages if isinstance(stage.objective, Patch)]
    assert len(found) == (opened or (4 if strategy == "independent" else 1))
    assert blocks(plan) == {4} and blocks(plan_family(ladder(*BILLIONS, recipe=recipe()))) == {1}
    for stage in found:
        children = [child for child in plan.stages if child.parent == stage.name]
        assert stage.member is None and stage.rate.decay_steps == 0
        assert [type(child.source) for child in children] == [Continue]  # nothing grows from patches, no branch
        assert all(isinstance(child.objective, Token) for child in children)
    assert all(isinstance(stage.objective, Token) for stage in plan.stages if stage.member)


def test_the_cursor_goes_k_times_faster_and_starts_at_whole_blocks() -> None:
    plan = plan_family(
        ladder(
            (1e6, 256 * 1001),
            (2e6, 256 * 4000),
            recipe={"tokens_per_step": 256, "schedule": {"decay_share": 0.2}},
            patch={"members": "all"},
        )
    )

    def sequences(stage: Stage) -> int:
        return int(stage.tokens) // 256

    first, second, third, fourth = plan.stages
    assert sequences(first) == 4 * first.steps and sequences(second) == second.steps
    assert plan.sequences_before(second.name, 256) == sequences(first)
    assert sequences(second) % 4  # so that rounding up is seen
    behind = plan.sequences_before(third.name, 256)
    assert behind % 4 == 0 and 0 < behind - sequences(first) - sequences(second) < 4
    assert plan.sequences_before(fourth.name, 256) == behind + sequences(third)


@pytest.mark.parametrize(
    ("tokens", "train_tokens", "patch", "words"),
    [
        (256 * 20_001, None, None, []),
        (256 * 20_001, 10**6, None, ["5.1 times"]),
        (256 * 20_001, 10**7, None, []),
        (256 * 40_002, None, {}, []),
        (256 * 39_000, None, {}, ["19,500 steps", "20,000"]),
        (256 * 400_000, None, {"step_share": 0.85, "size": 8}, ["85%"]),
    ],
)
def test_warnings(tokens: float, train_tokens: int | None, patch: dict | None, words: list[str]) -> None:
    schedule = {"tokens_per_step": 256, "schedule": {"decay_share": 0.1}}
    family = ladder((1e6, tokens), recipe=schedule, patch=patch)
    found = " ".join(plan_document(family, plan_family(family), train_tokens)["warnings"])
    assert all(word in found for word in words) and bool(found) == bool(words)


def test_the_comparison() -> None:
    family = ladder(*BILLIONS, recipe=recipe())
    rows = compare_strategies(family, "family.yaml")
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    costs = {(row["strategy"], row["patch"] is not None): row["cost"]["six_nd"] for row in rows}
    expected = {
        ("independent", False): 1.0,
        ("independent", True): 0.5,
        ("progressive", False): 64 / 85,
        ("progressive", True): 32 / 85,
        ("trunk", False): 67.2 / 85,
        ("trunk", True): 32.8 / 85,
    }
    assert costs.keys() == expected.keys()
    for key, cost in expected.items():
        assert costs[key] == pytest.approx(cost, abs=2e-3), key
    # A schedule that decays too early for half of the rows is replaced in all of them.
    early = compare_strategies(ladder(*BILLIONS, recipe=recipe(0.95)), "family.yaml")
    assert {row["decay_share"] for row in early} == {0.2} and not any(row["refused"] for row in early)
    refused = compare_strategies(ladder((1e9, 20e9), (2e9, 1e9), recipe=recipe()), "family.yaml")
    assert ["nothing is left" in (row["refused"] or "") for row in refused] == [False, False, True, True, True, True]
