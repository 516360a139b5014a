"""When a stage counts as diverged, and what is left of it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from micro import RecordingView, family

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.errors import KinfolkError
from kinfolk.schedule.own_runs import own_runs
from kinfolk.schedule.runs import read_runs
from kinfolk.train.divergence import PATIENCE, DivergedError, Watch

GUESSING = math.log(64)


def test_what_is_not_finite_has_diverged_at_once() -> None:
    assert Watch(64).fault(math.nan, 1.0, warmed_up=False) == "loss nan"
    assert Watch(64).fault(1.0, math.inf, warmed_up=True) == "gradient norm inf"


def test_only_a_loss_that_stays_above_guessing_after_the_warmup_has_diverged() -> None:
    watch = Watch(64)
    bad, good = GUESSING + 1e-6, GUESSING - 1e-6
    losses = [(bad, False)] * 100 + [(bad, True)] * (PATIENCE - 1) + [(good, True)] + [(bad, True)] * (PATIENCE - 1)
    assert not any(watch.fault(loss, 1.0, warmed_up=warm) for loss, warm in losses)
    found = watch.fault(bad, 1.0, warmed_up=True)
    assert found is not None and "worse than the 4.159 of guessing for 20 steps" in found


def test_a_build_stops_at_once_and_says_that_it_diverged(tmp_path: Path) -> None:
    """A peak at which nothing is infinite, but nothing is learnt either."""
    loaded = family(tmp_path, "strategy=independent", "recipe.peak_learning_rate=8")
    members = [member.model_copy(update={"tokens": 16 * 8 * 60}) for member in loaded.family.members]
    loaded = replace(loaded, family=loaded.family.model_copy(update={"members": members}))
    with pytest.raises(DivergedError, match="worse than") as caught:
        build(loaded, tmp_path / "run", RecordingView())
    assert isinstance(caught.value, KinfolkError) and "recipe.peak_learning_rate (now 8 " in str(caught.value)
    told = Ledger(tmp_path / "run" / "ledger.jsonl").events("stage_diverged")
    assert [(event["stage"], event["step"]) for event in told] == [("small", caught.value.step)]
    assert PATIENCE <= caught.value.step < 60

    runs, findings = own_runs(tmp_path / "run", {})
    assert [(run.name, run.loss, run.peak, run.steps) for run in runs] == [("run/small", None, 8.0, 60)]
    assert runs[0].stopped_at == caught.value.step
    assert any("large is left out: it is not finished" in finding for finding in findings)
    with pytest.raises(KinfolkError, match="every run diverged"):
        read_runs([tmp_path / "run"])
