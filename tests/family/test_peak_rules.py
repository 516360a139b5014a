"""Peaks of members by the rules of the recipe."""

from typing import Any

import pytest
import yaml
from documents import document
from hypothesis import given
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.load import dump_family, validate_family
from kinfolk.family.peak_rules import Size, deepseek_peak, olmo_ladder_peak, peak_ratio, step_law_peak
from kinfolk.family.spec import Family

SIZES = st.floats(1e4, 1e12)


def family(rule: str, **recipe: Any) -> Family:
    return validate_family(document(recipe={**document()["recipe"], "peak_rule": rule, **recipe}), "x")


def peaks(loaded: Family) -> list[float]:
    return [loaded.peak_learning_rate(member) for member in loaded.members]


def test_published_peaks() -> None:
    assert step_law_peak(1.0737e9, 5.69e10) == pytest.approx(1.3051e-3, rel=4e-5)
    assert deepseek_peak(1e9, 1e21 / 6e9) == pytest.approx(7.394e-4, rel=1e-4)
    assert olmo_ladder_peak(8 * 108e6) == pytest.approx(0.0047 / 2)


@given(SIZES, SIZES, SIZES, SIZES)
def test_ratios_are_the_published_powers(n: float, d: float, first_n: float, first_d: float) -> None:
    size, first = Size(7 * n, n, d), Size(7 * first_n, first_n, first_d)
    wider, longer = n / first_n, d / first_d
    assert peak_ratio("step_law", size, first) == pytest.approx(wider**-0.713 * longer**0.307)
    assert peak_ratio("deepseek", size, first) == pytest.approx((wider * longer) ** -0.125)
    assert peak_ratio("olmo_ladder", size, first) == pytest.approx(wider ** (-1 / 3))
    assert peak_ratio("exponent", size, first, 0.25) == pytest.approx(wider**-0.25)
    assert peak_ratio("exponent", size, first) == 1


def test_the_default_is_the_exponent() -> None:
    assert validate_family(document(), "x").recipe.peak_rule == "exponent"
    loaded = family("exponent", peak_learning_rate=0.01, peak_exponent=0.5)
    counts = [loaded.parameters(member) for member in loaded.members]
    assert peaks(loaded) == [0.01, 0.01 * (counts[1] / counts[0]) ** -0.5]


@pytest.mark.parametrize("rule", ["step_law", "deepseek", "olmo_ladder"])
def test_a_rule_is_anchored_at_the_recipes_peak(rule: Any) -> None:
    loaded = family(rule, peak_learning_rate=0.01)
    small, large = (loaded.size(member) for member in loaded.members)
    assert large.non_embedding < large.counted and large.tokens == 1e6
    assert peaks(loaded) == [0.01, 0.01 * peak_ratio(rule, large, small)]
    assert peaks(loaded)[1] != 0.01
    assert validate_family(yaml.safe_load(dump_family(loaded)), "x") == loaded


def test_a_rules_own_peak_of_the_first_member_gives_its_own_peaks_to_all() -> None:
    sizes = [family("step_law").size(member) for member in family("step_law").members]
    own = [step_law_peak(size.non_embedding, size.tokens) for size in sizes]
    assert peaks(family("step_law", peak_learning_rate=own[0])) == pytest.approx(own, rel=1e-12)


def test_a_members_own_peak_wins() -> None:
    parts = document(recipe={**document()["recipe"], "peak_rule": "step_law", "peak_learning_rate": 0.01})
    parts["members"][1]["peak_learning_rate"] = 0.7
    assert peaks(validate_family(parts, "x")) == [0.01, 0.7]


def test_members_without_shapes_have_the_parameters_that_they_say() -> None:
    members = [{"name": "small", "parameters": 1e6}, {"name": "large", "parameters": 8e6}]
    loaded = validate_family({**document(), "members": members, "recipe": {"peak_rule": "olmo_ladder"}}, "x")
    assert peaks(loaded)[1] == pytest.approx(peaks(loaded)[0] / 2)


@pytest.mark.parametrize(
    ("recipe", "field", "problem", "fix"),
    [
        ({"peak_rule": "steplaw"}, "recipe.peak_rule", "'steplaw' is not known", "step_law"),
        ({"peak_rule": "deepseek", "peak_exponent": 0.25}, "recipe.peak_exponent", "a second time", "set it to 0"),
        ({"peak_rule": "deepseek", "rate_transfer": {"rule": "mup"}}, "recipe.peak_rule", "a second time", "exponent"),
    ],
)
def test_what_does_not_go_together(recipe: dict[str, Any], field: str, problem: str, fix: str) -> None:
    with pytest.raises(KinfolkError) as caught:
        validate_family(document(recipe={**document()["recipe"], **recipe}), "family.yaml")
    assert field in str(caught.value.where) and problem in caught.value.problem and fix in str(caught.value.fix)
