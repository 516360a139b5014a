"""Schedules: shapes at their boundaries, and schedules from arrays, functions, files and schedulers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from kinfolk.errors import KinfolkError
from kinfolk.plan.stages import Rate
from kinfolk.schedule.candidates import extended
from kinfolk.schedule.own_runs import stage_schedule
from kinfolk.schedule.shapes import SHAPES, NamedSchedule, Shape, multiplier, rates
from kinfolk.schedule.sources import from_array, from_csv, from_function, from_scheduler
from kinfolk.train.rate import learning_rate


def named(shape: Shape, fraction: float = 0.4, end: float = 0.1, power: float = 2.0) -> NamedSchedule:
    return NamedSchedule(
        steps=1000, peak=2e-3, shape=shape, warmup_steps=100, decay_fraction=fraction, end_ratio=end, power=power
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_holds_decays_and_never_rises(shape: Shape) -> None:
    found = rates(named(shape))
    assert len(found) == 1000 and np.isfinite(found).all() and (found >= 0).all()
    assert found[:100] == pytest.approx(2e-3 * np.arange(100) / 100)
    assert (np.diff(found[100:]) <= 1e-18).all()
    if shape != "constant":
        assert found[100:600] == pytest.approx(2e-3) and found[601] < 2e-3
        # The end ratio would be reached one step after the last.
        assert float(named(shape).rate_at(np.array(1000.0))) == pytest.approx(2e-4)


def test_families_meet_at_their_boundaries() -> None:
    linear, constant = rates(named("linear")), rates(named("constant"))
    assert rates(named("power", power=1.0)) == pytest.approx(linear)
    for shape in SHAPES:
        assert rates(named(shape, fraction=0.0)) == pytest.approx(constant)
        assert rates(named(shape, end=1.0)) == pytest.approx(constant)
    # A decay never begins before the end of the warm-up.
    assert rates(named("linear", fraction=1.0)) == pytest.approx(rates(named("linear", fraction=0.9)))
    assert NamedSchedule(steps=100, peak=1.0, shape="linear", decay_fraction=0.29).decay_steps == 29


@given(
    steps=st.integers(2, 400),
    warmup=st.integers(0, 50),
    decay=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
    end=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_stage_of_kinfolk_is_a_named_schedule(steps: int, warmup: int, decay: float, shape: str, end: float) -> None:
    warmup = min(warmup, steps)
    rate = Rate(1e-3, warmup, int(decay * (steps - warmup)), shape, end)  # type: ignore[arg-type]
    wanted = [learning_rate(rate, step, steps) for step in range(steps)]
    found = stage_schedule(
        {
            "peak": 1e-3,
            "warmup_steps": warmup,
            "decay_steps": rate.decay_steps,
            "decay_shape": shape,
            "end_ratio": end,
        },
        steps,
    )
    assert rates(found) == pytest.approx(np.array(wanted), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"peak": 0.0},
        {"peak": math.nan},
        {"shape": "triangle"},
        {"warmup_steps": 101},
        {"decay_fraction": 1.5},
        {"end_ratio": -0.1},
        {"shape": "exponential", "end_ratio": 0.0},
        {"power": 0.0},
    ],
)
def test_what_makes_no_schedule_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(KinfolkError) as found:
        NamedSchedule(**{"steps": 100, "peak": 1e-3, "shape": "linear", "decay_fraction": 0.5, **wrong})  # type: ignore[arg-type]
    assert found.value.fix


def test_transformers_and_torch_schedulers_are_read_and_left_alone() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
    cosine = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=100)
    found = from_scheduler(cosine, 100)
    wanted = NamedSchedule(steps=100, peak=1e-3, shape="cosine", warmup_steps=10, decay_fraction=1.0)
    assert found == pytest.approx(rates(wanted), abs=1e-12)
    assert optimizer.param_groups[0]["lr"] == 0.0 and cosine.last_epoch == 0
    assert from_scheduler(cosine, 100) == pytest.approx(found)
    # In the middle of training, the rest is read.
    for _ in range(40):
        optimizer.step()
        cosine.step()
    assert from_scheduler(cosine, 60) == pytest.approx(found[40:])
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=2e-3)
    parts = [
        torch.optim.lr_scheduler.LinearLR(other, 0.1, 1.0, 5),
        torch.optim.lr_scheduler.CosineAnnealingLR(other, 15),
    ]
    sequence = from_scheduler(torch.optim.lr_scheduler.SequentialLR(other, parts, [5]), 20)
    assert sequence[0] == pytest.approx(2e-4) and sequence.max() == pytest.approx(2e-3) and sequence[-1] < 1e-4
    stable = from_scheduler(
        get_wsd_schedule(optimizer, num_warmup_steps=10, num_decay_steps=20, num_training_steps=100), 100
    )
    assert stable[50] == pytest.approx(1e-3)


def test_our_multiplier_drives_a_torch_scheduler() -> None:
    schedule = named("1-sqrt")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=schedule.peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier(schedule))
    assert from_scheduler(scheduler, 1000) == pytest.approx(rates(schedule), abs=1e-15)


def test_functions_and_files(tmp_path: Path) -> None:
    found = from_function(lambda step: 1e-3 / (1 + step), 50)
    path = tmp_path / "rates.csv"
    lines = [f"{step},{rate!r}" for step, rate in enumerate(found.tolist())]
    path.write_text("step,lr\n" + "\n".join(reversed(lines)))
    assert from_csv(path).tolist() == found.tolist()
    path.write_text("step,lr\n" + "\n".join(lines[:10] + lines[11:]))
    with pytest.raises(KinfolkError, match="missing or doubled"):
        from_csv(path)


@pytest.mark.parametrize(
    "wrong", [[], [[1e-3]], [0.0, 0.0], [1e-3, -1e-3], [1e-3, math.nan], [0.5, 1.0], ["fast"], [None]]
)
def test_arrays_that_are_no_rates_are_refused(wrong: list[object]) -> None:
    with pytest.raises(KinfolkError):
        from_array(wrong)  # type: ignore[arg-type]


def test_an_extension_begins_at_the_last_rate() -> None:
    past = NamedSchedule(steps=100, peak=1e-3, shape="linear", decay_fraction=0.5, end_ratio=0.1)
    more = NamedSchedule(steps=50, peak=5e-4, shape="linear", warmup_steps=10, decay_fraction=0.4)
    found = extended(past, more)
    assert len(found) == 150 and found[:100] == pytest.approx(rates(past))
    assert found[100] == pytest.approx(found[99]) and found[110] == pytest.approx(5e-4)
