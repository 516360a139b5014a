"""Batch-size warm-up: it divides batches, and leaves tokens, their order and the schedule as they are."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import ladder

from kinfolk.family.spec import Family
from kinfolk.plan.batches import Stretch, doubling, part_at
from kinfolk.plan.document import plan_document
from kinfolk.plan.stages import Rate, Scratch, Stage
from kinfolk.plan.strategies import plan_family
from kinfolk.train.rate import learning_rate

FULL, START = 2**15, 2**12
PATCHED = {"size": 4, "share": 0.5}
STRATEGIES = [("independent", {}), ("progressive", {}), ("progressive", {"start": "undecayed"}), ("trunk", {})]


def family(warmup: dict[str, Any] | None, **fields: Any) -> Family:
    schedule = {"warmup_share": 0.05, "decay_share": 0.2}
    recipe = {"tokens_per_step": FULL, "schedule": schedule, "batch_warmup": warmup}
    return ladder(1e6, 2e6, 4e6, **{"recipe": recipe, **fields})


@given(st.floats(0, 300), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_parts_tile_the_batches(batches: float, power: int) -> None:
    warmup = doubling(batches, 2**power)
    whole = sum(stretch.batches for stretch in warmup)
    steps = sum(stretch.steps for stretch in warmup)
    assert whole == (round(batches) if power else 0)
    assert [stretch.parts for stretch in warmup] == sorted({stretch.parts for stretch in warmup}, reverse=True)
    rows, read = 64, 0
    for step in range(steps + 3):
        part = part_at(warmup, step)
        assert part.before(rows) == read == part.begin * rows
        read += rows // part.parts
    assert part_at(warmup, steps) == part_at([], whole)
    assert read == (whole + 3) * rows


def test_a_step_doubles_whenever_four_times_the_tokens_are_read() -> None:
    assert doubling(64, 8) == (Stretch(4, 8), Stretch(12, 4), Stretch(48, 2))


@pytest.mark.parametrize("patch", [None, PATCHED, {**PATCHED, "optimizer": "reset"}])
@pytest.mark.parametrize(("strategy", "growth"), STRATEGIES)
def test_only_steps_from_random_weights_become_more(strategy: str, growth: dict, patch: dict | None) -> None:
    fields: dict[str, Any] = {"strategy": strategy, "growth": growth, "patch": patch}
    plain = plan_family(family(None, **fields))
    warmed = plan_family(family({"start": START, "share": 0.5}, **fields))
    begun = 0
    for before, after in zip(plain.stages, warmed.stages, strict=True):
        assert replace(after, steps=before.steps, batch_warmup=()) == before
        assert after.batches == before.steps and after.tokens_per_step == before.tokens_per_step
        assert after.rows_per_step(256) == before.rows_per_step(256)
        if isinstance(after.source, Scratch):
            begun += 1
            assert after.part_at(0).parts == 8
            assert sum(stretch.batches for stretch in after.batch_warmup) == round(before.steps / 2)
            assert after.part_at(after.steps).begin == before.steps
            extra = sum(stretch.batches * (stretch.parts - 1) for stretch in after.batch_warmup)
            assert after.steps == before.steps + extra > before.steps
        else:
            assert after == before
    assert begun == (3 if strategy == "independent" else 1)


def test_the_document_shows_it_and_its_costs_do_not_change() -> None:
    families = family(None), family({"start": START})
    plain, warmed = (plan_document(each, plan_family(each)) for each in families)
    assert warmed["total"] == plain["total"] and warmed["data"] == plain["data"]
    first, second = warmed["stages"][0], plain["stages"][0]
    assert first["tokens"] == second["tokens"] and first["steps"] > second["steps"]
    assert [stretch["parts"] for stretch in first["batch_warmup"]] == [8, 4, 2] and second["batch_warmup"] == []
    assert warmed["recipe"]["batch_warmup"] == {"start": START, "share": 0.25}


def test_the_rate_goes_by_tokens_and_by_the_root_of_the_batch() -> None:
    """At the end of every whole batch, the rate of a run without a warm-up, over the root of the parts."""
    rate = Rate(peak=2.0, warmup_steps=6, decay_steps=10, decay_shape="cosine", end_ratio=0.1)
    stage = Stage("a", None, 1.0, Scratch(0), objective=None, tokens=30, steps=30, rate=rate)  # type: ignore[arg-type]
    warmup = doubling(24, 4)
    stage = replace(stage, steps=30 + sum(each.steps - each.batches for each in warmup), batch_warmup=warmup)
    rates = {}
    for step in range(stage.steps):
        part = stage.part_at(step)
        rates[step] = learning_rate(rate, part.begin, stage.batches, part.parts)
        if part.index == part.parts - 1 and part.batch < 6:  # a warm-up has risen as far
            assert rates[step] == pytest.approx(learning_rate(rate, part.batch, 30) / math.sqrt(part.parts))
        if part.index == 0 and part.batch >= 6:
            assert rates[step] == pytest.approx(learning_rate(rate, part.batch, 30) / math.sqrt(part.parts))
    assert stage.part_at(3).parts == 4 and rates[0] == pytest.approx(2 / 2 * (1 / 4) / 6)
    assert rates[stage.steps - 1] == learning_rate(rate, 29, 30)
