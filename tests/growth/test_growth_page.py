"""The tables of docs/growth.md say what `kinfolk.growth.claims` says."""

from pathlib import Path
from typing import Any, get_args

import pytest

from kinfolk.family.shapes import Shape
from kinfolk.growth.claims import obstacles, what_breaks
from kinfolk.growth.sizes import Sizes, with_fields
from kinfolk.growth.tables import architectures, table_of
from kinfolk.plan.stages import DepthRule, Operator, WidthRule

PAGE = Path(__file__).parents[2] / "docs" / "growth.md"


def parent(architecture: str) -> Sizes:
    table = table_of(architecture)
    groups = 2 if table.head_size_is_free else 4
    shape = Shape(
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=groups,
        head_dim=4,
        intermediate_size=24,
    )
    return Sizes(shape, 41, *((4, 2) if table.has_experts else (None, None)))


def wider(architecture: str, hidden: int) -> dict[str, Any]:
    heads = hidden // 4
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if table_of(architecture).head_size_is_free else heads,
    }


def verdict(operator: Operator, architecture: str, changes: dict[str, Any]) -> str:
    before = parent(architecture)
    after = with_fields(before, changes)
    if obstacles(operator, before, after, architecture):
        return "refused"
    return "not exact" if what_breaks(operator, before, after, architecture) else "exact"


WIDTH_WORDS = {
    ("exact", "exact", "exact"): "exact",
    ("exact", "exact", "refused"): "whole multiples",
    ("exact", "not exact", "not exact"): "if hidden stays",
    ("not exact", "not exact", "not exact"): "not exact",
}


def width_table() -> str:
    rules = get_args(WidthRule)
    rows = [["", *rules, "head size", "experts"], ["---"] * (len(rules) + 3)]
    for architecture in architectures():
        row = [architecture]
        for rule in rules:
            cases = ({"intermediate_size": 31}, wider(architecture, 32), wider(architecture, 24))
            row.append(WIDTH_WORDS[tuple(verdict(Operator(rule), architecture, case) for case in cases)])  # type: ignore[index]
        free = table_of(architecture).head_size_is_free
        row.append(verdict(Operator(), architecture, {"head_dim": 8} | ({} if free else {"hidden_size": 32})))
        experts = {"num_local_experts": 8, "num_experts_per_tok": 4}
        row.append(verdict(Operator(), architecture, experts) if table_of(architecture).has_experts else "none")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def depth_table() -> str:
    verdicts = {
        rule: {verdict(Operator(depth=rule), one, {"num_hidden_layers": 4}) for one in architectures()}
        for rule in get_args(DepthRule)
    }
    assert all(len(found) == 1 for found in verdicts.values()), "depth growth is the same on every architecture"
    return "\n".join(
        ["| depth | every architecture |", "| --- | --- |", *(f"| {rule} | {min(v)} |" for rule, v in verdicts.items())]
    )


def reasons() -> list[str]:
    """Everything that the code refuses or calls not exact in the tables."""
    found = set()
    for architecture in architectures():
        before = parent(architecture)
        for operator in [Operator(rule) for rule in get_args(WidthRule)]:
            for changes in (wider(architecture, 24), {"head_dim": 8, **wider(architecture, 64)}):
                after = with_fields(before, changes)
                for misfit in obstacles(operator, before, after, architecture):
                    found.add(misfit.problem.split(":")[-1 if misfit.field == "head_dim" else 0])
                found.update(what_breaks(operator, before, after, architecture))
    return sorted(reason.strip().removeprefix("aki ").removeprefix("fpi ").split(", and 24")[0] for reason in found)


@pytest.mark.parametrize("table", [width_table, depth_table])
def test_the_page_has_the_table(table: Any) -> None:
    assert table() in PAGE.read_text(), f"docs/growth.md should hold:\n\n{table()}\n"


def test_the_page_gives_every_reason() -> None:
    text = " ".join(PAGE.read_text().split())
    missing = [reason for reason in reasons() if reason not in text]
    assert not missing
    assert len(reasons()) >= 6
