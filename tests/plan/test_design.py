"""From a budget to a family: against arithmetic by hand, published figures, and properties over budgets."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family, validate_family
from kinfolk.family.shapes import growth_obstacles, parameter_count
from kinfolk.laws.choose import choose_law
from kinfolk.laws.published import LAWS
from kinfolk.plan.allocate import Limits, allocate, strategy_rule
from kinfolk.plan.credit import loss_matched_credits
from kinfolk.plan.design import Design, design
from kinfolk.plan.design_document import design_document, refuse_not_finite
from kinfolk.plan.document import plan_document
from kinfolk.plan.ladder import shape_ladder
from kinfolk.plan.machines import Machines
from kinfolk.plan.strategies import plan_family
from kinfolk.plan.wish import Budget, Wish, parse_count

LAW = choose_law(["besiroglu"])
ONE_TO_EIGHT = np.array([1e9, 2e9, 4e9, 8e9])


def wish(flops: float, **fields: Any) -> Wish:
    return Wish(Budget(flops, "six_nd", f"{flops:g}"), fields.pop("machines", Machines("H100", 0.4)), **fields)


def made(flops: float, **fields: Any) -> Design:
    return design(wish(flops, **fields), LAW)


def document(flops: float, **fields: Any) -> dict[str, Any]:
    return design_document(made(flops, **fields), LAW)


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> KinfolkError:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert isinstance(result.exception, KinfolkError), result.exception
    assert result.stdout == ""
    return result.exception


@pytest.mark.parametrize(
    ("credit", "total", "saving"), [(1.0, 7.68e21, 0.24706), (0.5, 8.94e21, 0.12353), (0.0, 1.02e22, 0.0)]
)
def test_published_cost_of_a_chain(credit: float, total: float, saving: float) -> None:
    """{1, 2, 4, 8} B at 20 tokens per parameter, laws.md section 14."""
    rule = strategy_rule("progressive", ONE_TO_EIGHT, credit=credit, decay_share=0.2)
    cost = 6 * ONE_TO_EIGHT @ rule.train @ (20 * ONE_TO_EIGHT)
    assert cost == pytest.approx(total, rel=1e-3)
    assert 1 - cost / 1.02e22 == pytest.approx(saving, abs=1e-4)


@pytest.mark.parametrize(
    ("billions", "saving"),
    [((1, 2, 4, 8), 0.247), ((1, 3, 8), 0.135), ((0.5, 1, 3, 7), 0.173), ((0.125, 0.35, 1.3), 0.076)],
)
def test_published_savings_of_ladders(billions: tuple[float, ...], saving: float) -> None:
    size = 1e9 * np.array(billions)
    rule = strategy_rule("progressive", size, credit=1.0, decay_share=0.2)
    assert 1 - (size @ rule.train @ (20 * size)) / (size @ (20 * size)) == pytest.approx(saving, abs=6e-4)


def test_published_cost_of_a_patched_chain() -> None:
    """Patches of 4 for two thirds of every stage's tokens: half of 7.68e21, and said to be an upper bound."""
    fields = {"name": "p", "members": [{"name": f"{n}b", "parameters": n * 1e9} for n in (1, 2, 4, 8)]}
    patch = {"size": 4, "share": 2 / 3, "members": "all"}
    recipe = {"tokens_per_step": 256 * 1024, "schedule": {"decay_share": 0.2}}
    family = validate_family(fields | {"patch": patch, "recipe": recipe}, "test")
    found = plan_document(family, plan_family(family), None, LAW)
    assert found["total_flops"] == pytest.approx(3.84e21, rel=2e-3)
    assert all(any("upper bound" in said for said in member["cautions"]) for member in found["forecast"]["members"])


@pytest.mark.parametrize("strategy", ["independent", "progressive", "trunk"])
def test_linear_rules_are_those_of_the_strategies(strategy: str) -> None:
    """The rule that the split is made with and the plan that is built from it cost and read the same, to rounding."""
    family = made(3e20, sizes=(3e8, 6e8, 1.2e9), strategy=strategy, credit=0.8).family
    size = np.array([family.parameters(member) for member in family.members])
    tokens = np.array([family.tokens(member) for member in family.members])
    rule = strategy_rule(strategy, size, credit=0.8, decay_share=0.2)
    plan = plan_family(family)
    trained: dict[str, float] = {}
    owner = ""
    for stage in reversed(plan.stages):
        owner = stage.member or owner
        trained[owner] = trained.get(owner, 0.0) + stage.tokens
    assert [trained[member.name] for member in family.members] == pytest.approx(
        (rule.train @ tokens).tolist(), rel=5e-3
    )
    read = [sum(part.tokens for part in plan.lineage(member.name)) for member in family.members]
    assert read == pytest.approx((rule.read @ tokens).tolist(), rel=5e-3)


def test_one_member_is_the_optimum_of_the_law() -> None:
    law, compute = LAWS["besiroglu"], 1e21
    best = law.optimum(compute)
    size = np.array([best.parameters])
    rule = strategy_rule("progressive", size, credit=1, decay_share=0.2)
    found = allocate(law, size, size, [1.0], rule, Limits({"budget": 6 * size / compute}, 1.5, None, 2000, None))
    assert found is not None and found.tokens[0] == pytest.approx(best.tokens, rel=1e-9)
    swept = document(compute, members=1, fewest=None)["members"][0]
    # The sweep's steps and the shapes' tolerance keep it near the optimum, where the loss is flat.
    assert swept["parameters"]["total"] == pytest.approx(best.parameters, rel=0.15)
    assert swept["forecast"]["loss"] == pytest.approx(best.loss, rel=2e-4)


def test_the_split_is_the_best_of_many() -> None:
    """No random split that keeps to the limits forecasts better."""
    rule = strategy_rule("independent", ONE_TO_EIGHT, credit=1, decay_share=0.2)
    row = 6 * ONE_TO_EIGHT / 1e22
    law, limits = LAWS["besiroglu"], Limits({"budget": row}, None, None, 200, None)
    found = allocate(law, ONE_TO_EIGHT, ONE_TO_EIGHT, [1.0] * 4, rule, limits)
    assert found is not None and row @ found.tokens == pytest.approx(1)
    draws = np.random.default_rng(0).dirichlet(np.ones(4), 20_000) / row
    draws = np.minimum(draws, 200 * ONE_TO_EIGHT)
    others = law.predict(ONE_TO_EIGHT, draws).mean(axis=1)
    assert found.objective <= others.min()
    assert others.min() < found.objective * 1.001


@given(st.floats(17, 25), st.sampled_from(["independent", "progressive", "trunk"]), st.sampled_from([None, 3e11]))
@example(power=21.28539071180976, strategy="progressive", unique=None)
@settings(max_examples=6, deadline=None)
def test_designs_over_budgets(power: float, strategy: str, unique: float | None) -> None:
    """More budget never forecasts worse; a plan costs the sum of its stages; every limit is kept; shapes grow."""
    objectives = []
    for factor in (1.0, 1.3):
        flops = 10**power * factor
        found = document(flops, strategy=strategy, unique_tokens=unique)
        refuse_not_finite(found)
        objectives.append(found["objective"])
        stages = found["stages"]
        assert found["cost"]["six_nd"] == pytest.approx(sum(stage["flops"]["six_nd"] for stage in stages), rel=1e-12)
        assert found["cost"]["matmul"] == sum(stage["flops"]["matmul"] for stage in stages)
        assert found["cost"]["six_nd"] <= flops * (1 + 1e-9)
        members = found["members"]
        computes = [member["parameters"]["total"] * member["tokens"] for member in members]
        assert all(large >= 1.5 * small * 0.999 for small, large in itertools.pairwise(computes))
        assert all(20 * 0.99 <= member["ratio"] <= 60 * 1.001 for member in members)
        rates = [member["peak_learning_rate"] for member in members]
        assert rates == sorted(rates, reverse=True)
        if unique:
            assert found["data"]["tokens_read"] <= 4 * unique * 1.01
        if found["budget"]["left_share"] > 0.02:
            assert unique and any("not spent" in caution for caution in found["warnings"])
    assert objectives[1] <= objectives[0] * (1 + 1e-4)


@given(
    st.floats(6.5, 12), st.floats(1.2, 8), st.sampled_from([8192, 32768, 131072]), st.sampled_from(["llama", "qwen3"])
)
@settings(max_examples=40, deadline=None)
def test_shapes_grow_and_suit_hardware(power: float, ratio: float, vocabulary: int, architecture: Any) -> None:
    sizes = [10**power * ratio**step for step in range(3)]
    try:
        shapes = shape_ladder(sizes, vocabulary, architecture)
    except KinfolkError as error:
        assert error.fix and power < 8.5
        return
    for size, shape in zip(sizes, shapes, strict=True):
        assert parameter_count(shape, vocabulary, architecture).total == pytest.approx(size, rel=0.05)
        assert shape.hidden_size % 128 == 0 and shape.intermediate_size % 128 == 0 and shape.head_dim in (64, 128)
        assert 2 <= shape.intermediate_size / shape.hidden_size <= 8
    assert all(not growth_obstacles(small, large) for small, large in itertools.pairwise(shapes))


def test_without_guards_a_chain_is_refused() -> None:
    with pytest.raises(KinfolkError, match="without end"):
        wish(1e21, growth=None, most=None)
    wish(1e21, growth=None, most=None, strategy="independent")
    wish(1e21, growth=None, most=None, unique_tokens=1e11)


def test_the_optimum_moves_with_its_cap_and_names_it() -> None:
    free, capped = document(1e22, most=2000.0), document(1e22, most=40.0)
    binding = {constraint["name"] for constraint in capped["constraints"] if constraint["binding"]}
    assert "most" in binding and "growth" not in binding
    assert {constraint["name"] for constraint in free["constraints"] if constraint["binding"]} == {"budget", "growth"}
    assert capped["members"][0]["ratio"] == pytest.approx(40, rel=1e-3)
    assert capped["members"][0]["tokens"] < free["members"][0]["tokens"] / 2


def test_data_deadline_memory_and_serving_limit_a_design() -> None:
    free = document(1e21)
    largest = free["members"][-1]["parameters"]["total"]
    little = document(1e21, unique_tokens=2e9)
    assert little["data"]["tokens_read"] <= 8e9 * 1.001
    assert any("not spent" in caution for caution in little["warnings"])
    late = document(1e21, deadline=100.0)
    assert late["cost"]["hours"] == pytest.approx(100, rel=1e-2)
    assert any(constraint["name"] == "deadline" and constraint["binding"] for constraint in late["constraints"])
    small = document(1e21, memory=20e9)
    assert small["members"][-1]["memory"]["total"] <= 20e9 < free["members"][-1]["memory"]["total"]
    assert any(constraint["name"] == "memory" and constraint["binding"] for constraint in small["constraints"])
    served = document(1e21, served=(1e11,) * 3, most=2000.0)
    assert served["members"][-1]["parameters"]["total"] < largest
    assert served["budget"]["spent"] == pytest.approx(1e21, rel=1e-3)
    twos = sum(2e11 * member["parameters"]["total"] for member in served["members"])
    assert served["budget"]["serving"] == twos
    assert all(member["price"]["serving"]["lifetime_over_cheapest"] >= 0.9999 for member in served["members"])


def test_prices_of_over_training() -> None:
    for member in document(1e21)["members"]:
        price = LAWS["besiroglu"].effective_compute(member["parameters"]["total"], member["tokens"])
        assert member["price"]["effective_compute"] == pytest.approx(price, rel=1e-3)
        assert member["price"]["compute_law"] == 1.0


def test_published_credits_of_a_chain() -> None:
    """{1, 2, 4, 8} B at 20 tokens per parameter by besiroglu-printed, laws.md section 14."""
    law, tokens = LAWS["besiroglu-printed"], 20 * ONE_TO_EIGHT
    credits = loss_matched_credits(law, ONE_TO_EIGHT.tolist(), tokens.tolist())
    assert credits == pytest.approx([1.174, 1.167, 1.160], abs=5e-4)
    spent = [6 * n * d for n, d in zip(ONE_TO_EIGHT, tokens, strict=True)]
    assert sum(spent) - sum(c * s for c, s in zip(credits, spent, strict=False) if c) == pytest.approx(
        7.272e21, rel=1e-3
    )
    found = document(1e21, most=2000.0)
    assert found["credit"]["by_law"][0] < 1 and any("cautious choice" in caution for caution in found["warnings"])


def test_weights_move_the_budget() -> None:
    sizes = (1e9, 4e9)
    even, last = (
        made(1e22, sizes=sizes, strategy="independent", weights=weights, most=None).family
        for weights in ((1, 1), (1, 20))
    )
    assert last.tokens(last.members[1]) > even.tokens(even.members[1])


def test_hours_and_money_pay_for_the_real_products(tmp_path: Path) -> None:
    hours = json.loads(command("--gpu-hours", 1000, "--json"))
    assert hours["cost"]["gpu_hours"] == pytest.approx(1000, rel=1e-3) and hours["cost"]["gpu_hours"] <= 1000
    assert hours["cost"]["matmul"] == pytest.approx(1000 * 3600 * 989e12 * 0.4, rel=1e-3)
    assert hours["cost"]["kilowatt_hours"] == pytest.approx(1000 * 0.7 * 1.5, rel=1e-3)
    money = json.loads(command("--money", 2500, "--price", 2.5, "--gpus", 8, "--json"))
    assert money["cost"]["money"] == pytest.approx(2500, rel=1e-3)
    assert money["cost"]["hours"] == pytest.approx(125, rel=1e-3)
    assert money["family_file"] == hours["family_file"]


def test_a_written_family_is_planned_edited_and_costed_anew(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    shown = command("--budget", "1e20", "--sizes", "100M,200M", "--write", path)
    assert "limits (-> reached" in shown and f"written: {path}" in shown and "this plan saves" in shown
    document = json.loads(command("--budget", "1e20", "--sizes", "100M,200M", "--json"))
    family = load_family(str(path)).family
    again = plan_document(family, plan_family(family))
    assert again["total"] == document["total"] and again["stages"] == document["stages"]
    path.write_text(path.read_text().replace(f"tokens: {family.members[1].tokens}", "tokens: 2.5e+11"))
    result = CliRunner().invoke(app, ["plan", str(path), "--json"], catch_exceptions=False)
    edited = json.loads(result.stdout)
    assert edited["total_flops"] == pytest.approx(6 * family.parameters(family.members[1]) * 2.5e11, rel=1e-3)
    assert "there already" in str(refused("--budget", "1e20", "--write", path))


def test_a_patch_part_is_paid_and_flagged() -> None:
    """Four tokens a patch for two thirds of the tokens halve the cost of a token."""
    plain, patched = (
        document(1e20, sizes=(3e8,), most=2000.0),
        json.loads(command("--budget", "1e20", "--sizes", "3e8", "--patch", 4, "--most", 2000, "--json")),
    )
    assert patched["members"][0]["tokens"] == pytest.approx(2 * plain["members"][0]["tokens"], rel=0.01)
    assert patched["cost"]["six_nd"] <= 1e20
    assert any("upper bound" in caution for caution in patched["warnings"])


def test_heavily_over_trained_members_are_warned_of() -> None:
    found = document(1e21, sizes=(5e7, 1e8), most=None)
    assert any("2503.19206" in caution for member in found["members"] for caution in member["forecast"]["cautions"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to plan"),
        (("--budget", "1e21", "--gpu-hours", "5"), "2 budgets"),
        (("--budget", "nan"), "not a count"),
        (("--budget", "-1e21"), "not a count"),
        (("--budget", "0"), "not positive"),
        (("--budget", "21"), "peta or exa"),
        (("--budget", "1e40"), "more than there are"),
        (("--gpu-hours", "nan"), "positive"),
        (("--gpu-hours", "-3"), "positive"),
        (("--money", "100"), "--price"),
        (("--money", "100", "--price", "0"), "price"),
        (("--budget", "1e21", "--sizes", "1,2,4"), "1B"),
        (("--budget", "1e21", "--sizes", "1e9,2e18"), "too large"),
        (("--budget", "1e21", "--sizes", "2B,1B"), "small to large"),
        (("--budget", "1e21", "--unique-tokens", "15"), "15B"),
        (("--budget", "1e21", "--served", "1"), "1M or 1B"),
        (("--budget", "1e21", "--served", "1e12,1e12"), "2 values for 3"),
        (("--budget", "1e21", "--weights", "1,0,1"), "not positive"),
        (("--budget", "1e21", "--most", "nan"), "--most"),
        (("--budget", "1e21", "--fewest", "50", "--most", "20"), "exchange"),
        (("--budget", "1e21", "--growth", "0", "--most", "0"), "without end"),
        (("--budget", "1e21", "--strategy", "chain"), "progressive"),
        (("--budget", "1e21", "--gpu", "TPU"), "H100"),
        (("--budget", "1e21", "--utilisation", "40"), "share"),
        (("--budget", "1e21", "--sizes", "1B,400B"), "more than the limits"),
        (("--budget", "1e21", "--members", "9"), "--members"),
        (("--budget", "1e21", "--smallest", "1B", "--largest", "1.1B"), "widen"),
        (("--budget", "1e21", "--patch", "0"), "patches of 0"),
        (("--budget", "1e21", "--sizes", "1B", "--memory", "1"), "--memory"),
        (("--budget", "1e17", "--served", "1e18"), "serving alone"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], said: str) -> None:
    error = refused(*arguments)
    assert said in str(error) and error.fix


@given(st.text(max_size=12))
@settings(max_examples=50, deadline=None)
def test_counts_are_numbers_or_refused(text: str) -> None:
    try:
        value = parse_count(text, "--sizes", 1e4, 1e14)
    except KinfolkError as error:
        assert error.fix
    else:
        assert math.isfinite(value) and 1e4 <= value <= 1e14


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    path = tmp_path / "family.html"
    command("--budget", "1e21", "--sizes", "500M,1B,2B", "--page", path)
    page = path.read_text()
    assert "Forecast of every member" in page and "Sizes at equal compute" in page and "What other budgets" in page
    figures = json.loads(page.split('id="plots">')[1].split("</script>")[0])
    assert set(figures) == {"members", "isoflop", "frontier"}
    assert len(figures["members"]["members"]["data"][0]["x"]) == 3
    for trace in figures["frontier"]["frontier"]["data"]:
        assert trace["y"] == sorted(trace["y"], reverse=True) and len(trace["y"]) >= 2
    assert "http-equiv" in page and "src=" not in page.split("<script>")[0]
    assert "folder" in str(refused("--budget", "1e21", "--page", tmp_path))


def test_a_family_is_held_against_a_budget(tmp_path: Path) -> None:
    """An edited family is costed anew beside the limits: which are kept, reached, and broken, and by how much."""
    path = tmp_path / "family.yaml"
    made = json.loads(command("--budget", "3e19", "--sizes", "100M,200M", "--most", 200, "--write", path, "--json"))
    held = json.loads(command(path, "--budget", "3e19", "--most", 200, "--json"))
    for same in ("stages", "total", "members", "forecast", "strategies"):
        assert held[same] == made[same]
    assert not any(limit["broken"] for limit in held["constraints"])
    assert next(limit for limit in held["constraints"] if limit["name"] == "budget")["binding"]
    half = json.loads(command(path, "--budget", "2e19", "--most", 40, "--json"))
    limits = {limit["name"]: limit for limit in half["constraints"]}
    assert limits["budget"]["broken"] and limits["budget"]["used"] == pytest.approx(half["total"]["six_nd"] / 2e19)
    assert limits["most"]["broken"] and limits["most"]["used"] == pytest.approx(half["members"][0]["ratio"] / 40)
    assert not limits["growth"]["broken"] and not limits["fewest"]["broken"]
    assert sum("limit is broken" in warning for warning in half["warnings"]) == 2
    shown = command(path, "--budget", "2e19")
    assert "!! the family costs at most 2e19" in shown
    page = tmp_path / "held.html"
    command(path, "--budget", "2e19", "--page", page)
    assert ">broken<" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "--sizes", "1B"), "--sizes"),
        (("tiny", "--budget", "1e15", "--sizes", "1B"), "--sizes"),
        (("tiny", "--budget", "1e15", "--credit", "0.5"), "--credit"),
        (("tiny", "--fewest", "5"), "none is given"),
        (("tiny", "--page", "x.html"), "none is given"),
        (("tiny", "--budget", "1e15", "--compare"), "compares"),
        (("--budget", "1e21", "--set", "name=x"), "--set"),
        (("--budget", "1e21", "--compare"), "--compare"),
        (("--budget", "1e21", "--loss", "l"), "--loss"),
        (("--replay", "runs.csv", "--budget", "1e21"), "--budget"),
        (("tiny", "--replay", "runs.csv"), "FAMILY"),
        (("tiny", "--loss", "l"), "--loss"),
    ],
)
def test_an_option_that_plays_no_part_is_refused(arguments: tuple[str, ...], said: str) -> None:
    error = refused(*arguments)
    assert said in str(error) and error.fix


def test_an_edited_rate_is_judged_and_a_printed_plan_is_no_family_file(tmp_path: Path) -> None:
    path, printed = tmp_path / "family.yaml", tmp_path / "plan.json"
    printed.write_text(command("--budget", "1e19", "--write", path, "--json"))
    assert "family_file" in str(refused(printed)) and "family_file" in str(refused(printed, "--budget", "1e19"))
    held = json.loads(command(path, "--budget", "1e19", "--set", "members.2.peak_learning_rate=0.5", "--json"))
    assert sum("peak learning rate" in warning for warning in held["warnings"]) == 2


def test_a_bare_size_cannot_be_held_against_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("name: bare\nmembers: [{name: a, parameters: 1e9}, {name: b, parameters: 2e9}]\n")
    assert "members[0]" in str(refused(path, "--budget", "1e21"))
    assert json.loads(command(path, "--gpus", 8, "--price", 2, "--json"))["cost"]["money"] > 0
