"""Rate transfer in a family file: its base, and what it is refused with."""

from typing import Any

import pytest
import yaml
from documents import document, shape

from kinfolk.errors import KinfolkError
from kinfolk.family.load import dump_family, validate_family
from kinfolk.family.rate_transfer import Factors
from kinfolk.family.shapes import Shape


def family(transfer: dict[str, Any], **recipe: Any) -> Any:
    return document(recipe={**document()["recipe"], "rate_transfer": transfer, **recipe})


def transfer(**fields: Any) -> dict[str, Any]:
    return {"recipe": {"rate_transfer": fields}}


def test_off_by_default() -> None:
    loaded = validate_family(document(), "x")
    assert loaded.recipe.rate_transfer.rule == "none"
    assert all(loaded.factors(member.shape) is None for member in loaded.members)


@pytest.mark.parametrize(
    ("base", "hidden"),
    [({}, 32), ({"base": "small"}, 32), ({"base": "large"}, 48), ({"base_shape": shape(hidden_size=16)}, 16)],
)
def test_the_base_is_the_first_member_or_what_is_named(base: dict[str, Any], hidden: int) -> None:
    loaded = validate_family(family({"rule": "mup", **base}), "x")
    assert loaded.base_shape is not None and loaded.base_shape.hidden_size == hidden
    factors = loaded.factors(loaded.members[1].shape)
    assert factors is not None and factors["q_proj"].rate == pytest.approx(hidden / 48)
    assert set((loaded.factors(loaded.base_shape) or {}).values()) == {Factors()}
    assert validate_family(yaml.safe_load(dump_family(loaded)), "x") == loaded


def test_members_without_shapes_have_no_factors() -> None:
    members = [{"name": "small", "parameters": 1e6}, {"name": "large", "parameters": 3e6}]
    loaded = validate_family(family({"rule": "completep"}) | {"members": members}, "x")
    assert loaded.factors(Shape(**shape())) is None


@pytest.mark.parametrize(
    ("changes", "field", "problem", "fix"),
    [
        (transfer(rule="mu"), "recipe.rate_transfer.rule", "'mu' is not known", "mup"),
        (transfer(base="tiny"), "recipe.rate_transfer.base", "no member 'tiny'", "base_shape"),
        (transfer(base="small", base_shape=shape()), "recipe.rate_transfer.base_shape", "two bases", "one of them out"),
        ({"recipe": {"peak_exponent": 0.25}}, "recipe.peak_exponent", "a second time", "set it to 0"),
        ({"growth": {"rates": "inherit"}}, "growth.rates", "its own shape", "uniform"),
        ({"recipe": {"optimizer": {"matrices": "muon"}}}, "recipe.optimizer.matrices", "are Adam's", "use adamw"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], field: str, problem: str, fix: str) -> None:
    wanted = family({"rule": "completep"}) | {key: value for key, value in changes.items() if key != "recipe"}
    for key, value in changes.get("recipe", {}).items():
        wanted["recipe"][key] = {**wanted["recipe"].get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(KinfolkError) as caught:
        validate_family(wanted, "family.yaml")
    assert field in str(caught.value.where) and problem in caught.value.problem and fix in str(caught.value.fix)


def test_inherited_rates_do_not_matter_where_nothing_grows() -> None:
    validate_family(family({"rule": "mup"}) | {"growth": {"rates": "inherit"}, "strategy": "independent"}, "x")
