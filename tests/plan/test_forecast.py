"""Forecasts of a plan's members: against the law by hand, for every strategy, and as the command shows them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw, choose_law
from kinfolk.laws.loss import LossLaw, save_law
from kinfolk.laws.published import LAWS
from kinfolk.plan.forecast import StageForecast, forecast_document, forecast_members
from kinfolk.plan.strategies import plan_family

BESIROGLU = choose_law(["besiroglu"])


def ladder(*billions: float, **fields: Any) -> Family:
    members = [{"name": f"m{i}", "parameters": n * 1e9} for i, n in enumerate(billions)]
    recipe = {"tokens_per_step": 256 * 1024, "schedule": {"decay_share": 0.2}}
    return Family.model_validate({"name": "ladder", "members": members, "recipe": recipe, **fields})


def forecasts(family: Family, chosen: ChosenLaw = BESIROGLU, unique: float | None = None) -> list[StageForecast]:
    return forecast_members(family, plan_family(family), chosen, unique)


def plan_command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("strategy", ["independent", "progressive", "trunk"])
@pytest.mark.parametrize("credit", [1.0, 0.5])
def test_every_strategy_is_worth_what_its_members_have_alone(strategy: str, credit: float) -> None:
    """The budget rule spares a stage what its parent is worth, so the tokens come out as those of the member alone."""
    family = ladder(1, 2, 4, 8, strategy=strategy, parent_credit=credit)
    for member, size in zip(forecasts(family), (1e9, 2e9, 4e9, 8e9), strict=True):
        assert member.parameters == size
        assert member.tokens == pytest.approx(20 * size, rel=1e-3)
        assert member.loss == pytest.approx(LAWS["besiroglu"].predict(size, 20 * size), rel=1e-4)
        assert member.low is not None and member.high is not None and member.loss is not None
        assert (member.low, member.high) == pytest.approx(LAWS["besiroglu"].interval(size, 20 * size), rel=1e-4)
        assert member.bits_per_byte == pytest.approx(member.loss / math.log(2) / 4.5)


def test_an_assumed_credit_is_said() -> None:
    small, large = forecasts(ladder(1, 8))
    assert not any("parent" in caution for caution in small.cautions)
    assert any("parent's compute" in caution for caution in large.cautions)
    assert any("0.5 times" in caution for caution in forecasts(ladder(1, 8, parent_credit=0.5))[1].cautions)


def test_the_effect_of_a_credit_is_shown() -> None:
    """If growth keeps less, the same plan's members are worth fewer tokens, by the budget rule."""
    family = ladder(1, 2)
    plan = plan_family(family)
    effect = forecast_document(family, plan, BESIROGLU)["credit_effect"]
    assert [row["credit"] for row in effect] == [1.0, 0.8, 0.5]
    own = plan.stage("m1").tokens
    for row in effect:
        assert row["losses"]["m0"] == pytest.approx(LAWS["besiroglu"].predict(1e9, 20e9), rel=1e-4)
        worth = own + row["credit"] * 20e9 / 2
        assert row["losses"]["m1"] == pytest.approx(LAWS["besiroglu"].predict(2e9, worth), rel=1e-4)
    mild = ladder(1, 2, parent_credit=0.7)
    assert [row["credit"] for row in forecast_document(mild, plan_family(mild), BESIROGLU)["credit_effect"]] == [
        1.0, 0.8, 0.7, 0.5
    ]  # fmt: skip
    alone = ladder(1, 2, strategy="independent")
    assert forecast_document(alone, plan_family(alone), BESIROGLU)["credit_effect"] == []
    assert "growth keeps: 1 (taken here)" in plan_command("paper-1b-8b")


def test_patches_widen_the_interval_towards_one_token_a_patch() -> None:
    (plain,), (patched,) = forecasts(ladder(1)), forecasts(ladder(1, patch={"size": 4}))
    assert patched.loss == pytest.approx(plain.loss, rel=1e-3)
    assert patched.low == pytest.approx(plain.low, rel=1e-3)
    # Two thirds of 20e9 tokens in patches of 4 are half as many positions.
    worst = LAWS["besiroglu"].interval(1e9, 10e9)
    assert worst is not None and patched.high == pytest.approx(worst[1], rel=1e-3)
    assert any("upper bound" in caution for caution in patched.cautions)


def test_repeated_tokens_count_for_less() -> None:
    family = ladder(1)
    (fresh,), (again,), (enough,) = forecasts(family), forecasts(family, unique=2e9), forecasts(family, unique=2e10)
    assert fresh.loss is not None and again.loss is not None
    assert again.loss > fresh.loss * 1.005
    assert enough.loss == pytest.approx(fresh.loss, rel=1e-6)
    assert again.low is not None and again.high is not None and again.low < again.loss < again.high


def test_what_the_law_cannot_know_is_not_forecast() -> None:
    tiny = Family.model_validate(
        {"name": "t", "tokenizer": {"vocab_size": 1024}, "members": [{"name": "a", "parameters": 1e5}]}
    )
    (member,) = forecasts(tiny)
    assert member.loss is None and member.low is None and "guessing" in member.cautions[0]
    law = LAWS["besiroglu"].model_copy(update={"counting": "non_embedding"})
    (bare,) = forecasts(ladder(1), ChosenLaw(law, None, "unknown"))
    assert bare.loss is None and "non_embedding" in bare.cautions[0]


def test_sizes_are_counted_as_the_law_counts_them() -> None:
    shape = Shape(num_hidden_layers=8, hidden_size=512, num_attention_heads=8, head_dim=64, intermediate_size=1408)
    family = Family.model_validate(
        {"name": "f", "tokenizer": {"vocab_size": 32000}, "members": [{"name": "a", "shape": shape.model_dump()}]}
    )
    law = LAWS["besiroglu"].model_copy(update={"counting": "non_embedding"})
    (total,), (body,) = forecasts(family), forecasts(family, ChosenLaw(law, None, "unknown"))
    assert total.parameters is not None and body.parameters is not None
    assert total.parameters - body.parameters == 32000 * 512
    assert body.bits_per_byte is None


def test_over_trained_members_are_warned_of() -> None:
    (member,) = forecasts(ladder(1, tokens_per_parameter=2500))
    assert any("2503.19206" in caution for caution in member.cautions)


@given(st.floats(1e8, 1e11), st.floats(5, 500))
@settings(max_examples=30, deadline=None)
def test_more_tokens_never_forecast_worse(size: float, ratio: float) -> None:
    def loss(ratio: float) -> float:
        family = ladder(size / 1e9, tokens_per_parameter=ratio, recipe={"tokens_per_step": 256})
        value = forecasts(family)[0].loss
        assert value is not None
        return value

    assert loss(ratio * 1.1) <= loss(ratio)


def test_a_broken_law_never_reaches_a_plan() -> None:
    law = LossLaw(
        name="broken", E=1, A=1e308, B=1, alpha=-0.5, beta=0.3, counting="total", standing="fitted", source="nobody"
    )
    with pytest.raises(KinfolkError, match="fit it again"):
        forecasts(ladder(1e6), ChosenLaw(law, None, "unknown"))


def test_command(tmp_path: Path) -> None:
    shown = plan_command("paper-1b-8b")
    assert "forecast by besiroglu" in shown and "no law was given" in shown and "bits per byte at 4.5" in shown
    save_law(tmp_path / "mine.json", LAWS["besiroglu"].model_copy(update={"name": "mine", "standing": "fitted"}))
    document = json.loads(plan_command("paper-1b-8b", "--law", tmp_path / "mine.json", "--json"))
    forecast = document["forecast"]
    assert forecast["law"]["name"] == "mine" and forecast["notes"] == []
    assert [member["bits_per_byte"] for member in forecast["members"]] == [None] * 4
    losses = [member["loss"] for member in forecast["members"]]
    assert losses == sorted(losses, reverse=True)
    given = json.loads(plan_command("paper-1b-8b", "--law", tmp_path / "mine.json", "--bytes-per-token", 4, "--json"))
    first = given["forecast"]["members"][0]
    assert first["bits_per_byte"] == pytest.approx(first["loss"] / math.log(2) / 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--law", "nobody"),
        ("--law", "missing.json"),
        ("--law", "besiroglu", "--law", "muennighoff"),
        ("--law", "besiroglu", "--law", "runs.csv"),
        ("--law", "runs.csv"),
        ("--bytes-per-token", "0"),
        ("--bytes-per-token", "nan"),
    ],
)
def test_what_is_no_law_is_refused(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["plan", "paper-1b-8b", *arguments])
    assert isinstance(result.exception, KinfolkError) and result.exception.fix, result.exception
    assert result.stdout == ""
