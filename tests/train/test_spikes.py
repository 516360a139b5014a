"""A loss far above those before it is said, and rolled back where the recipe asks for that."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro import RecordingView, exit_code, family, in_child, members_of, start_child
from safetensors.torch import load_file

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Spikes
from kinfolk.train import stage as training_of_a_stage
from kinfolk.train.monitor import read_metrics
from kinfolk.train.resumable import Resumable
from kinfolk.train.spikes import LEAST, WINDOW, SpikeWatch

BAD = 46
"""The step, from 1, whose batch is noise."""
TOKENS = 60 * 8 * 16
ROLLBACK = ("recipe.spikes={action: rollback, deviations: 5}", "recipe.checkpoints.steps=5")


@pytest.fixture(autouse=True)
def _noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch holds tokens drawn at random: what a stretch of garbage in the data would be."""
    real = training_of_a_stage.read

    def read(tokens: Any, reading: Any, first: int, count: int, seed: int) -> Any:
        rows = real(tokens, reading, first, count, seed)
        if first == (BAD - 1) * 8:
            return np.random.default_rng(1).integers(0, 300, rows.shape)
        return rows

    monkeypatch.setattr(training_of_a_stage, "read", read)


def one_member(folder: Path, *overrides: str) -> Any:
    members = ["members.0.tokens=" + str(TOKENS), "strategy=independent", "recipe.held_out_every_steps=60"]
    loaded = family(folder, *members, "recipe.spikes.deviations=5", *overrides)
    return type(loaded)(
        loaded.family.model_copy(update={"members": loaded.family.members[:1]}), loaded.origin, loaded.folder
    )


def records(run: Path) -> list[dict[str, Any]]:
    return [each for each in read_metrics(run / "stages" / "small" / "metrics.jsonl") if "loss" in each]


def test_only_what_lies_far_above_the_last_losses_is_a_spike() -> None:
    draw = np.random.default_rng(0)
    watch = SpikeWatch(Spikes(deviations=7))
    for loss in 3 + 0.1 * draw.standard_normal(2000):
        assert watch.height(loss, warmed_up=True) is None
        watch.note(loss)
    assert watch.height(3.6, warmed_up=True) is None and watch.height(3.9, warmed_up=False) is None
    height = watch.height(3.9, warmed_up=True)
    assert height is not None and 8 < height < 10
    assert watch.height(-9.0, warmed_up=True) is None
    fresh = SpikeWatch(Spikes(), [3.0] * (LEAST - 1))
    assert fresh.height(9.0, warmed_up=True) is None
    fresh.note(3.0)
    assert fresh.height(3.01, warmed_up=True) is None and fresh.height(9.0, warmed_up=True) is not None


def test_the_window_of_a_resumed_run_is_that_of_the_run() -> None:
    losses = list(np.random.default_rng(1).normal(3, 0.1, 3 * WINDOW))
    whole, resumed = SpikeWatch(Spikes()), SpikeWatch(Spikes(), losses)
    for loss in losses:
        whole.note(loss)
    assert whole.height(9.0, warmed_up=True) == resumed.height(9.0, warmed_up=True)


def test_by_default_a_spike_is_said_and_nothing_else_changes(tmp_path: Path) -> None:
    view = RecordingView()
    build(one_member(tmp_path), tmp_path / "run", view)
    assert [each["step"] for each in records(tmp_path / "run") if "spike" in each] == [BAD]
    assert any(f"at step {BAD} is" in said and said.startswith("warning: ") for said in view.said)
    (finished,) = Ledger(tmp_path / "run" / "ledger.jsonl").events("stage_finished")
    assert (finished["spikes"], finished["rollbacks"]) == (1, 0)
    build(one_member(tmp_path, "recipe.spikes.deviations=1000"), tmp_path / "blind", RecordingView())
    assert members_of(tmp_path / "run") == members_of(tmp_path / "blind")


def test_a_rollback_takes_the_weights_of_the_checkpoint_and_leaves_out_the_steps_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spike is in the very step that would have saved the checkpoint of 45: that one is not trusted either."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    real = Resumable.advance

    def advance(training: Resumable, **changes: Any) -> None:
        real(training, **changes)
        seen[training.position.step] = {name: value.clone() for name, value in training._tensors.items()}
        if training.position.step == BAD:
            (file,) = (tmp_path / "run/stages/small/checkpoints/step-00000040").glob("*.safetensors")
            saved.update(load_file(file))

    monkeypatch.setattr(Resumable, "advance", advance)
    view = RecordingView()
    build(one_member(tmp_path, *ROLLBACK), tmp_path / "run", view)
    assert seen[BAD].keys() == saved.keys() - {"random.cpu"}
    assert all(
        torch.equal(value, saved[name]) and torch.equal(value, seen[40][name]) for name, value in seen[BAD].items()
    )
    assert not torch.equal(seen[45]["model.model.norm.weight"], seen[BAD]["model.model.norm.weight"])
    assert [(each["step"], each["rolled_back_to"]) for each in records(tmp_path / "run") if "spike" in each] == [
        (46, 40)
    ]
    assert [each["step"] for each in records(tmp_path / "run")] == list(range(1, 61))
    assert any("back to the weights of step 40" in said for said in view.said)
    assert Ledger(tmp_path / "run" / "ledger.jsonl").events("stage_finished")[0]["rollbacks"] == 1
    assert len(list((tmp_path / "run/stages/small/checkpoints").iterdir())) == 1


@pytest.mark.parametrize(("step", "number"), [(46, signal.SIGTERM), (51, signal.SIGKILL)])
def test_a_rollback_is_the_same_for_a_build_that_was_stopped(tmp_path: Path, step: int, number: int) -> None:
    loaded = one_member(tmp_path, *ROLLBACK)
    build(loaded, tmp_path / "whole", RecordingView())

    def stop(count: int) -> None:
        if count == step:
            os.kill(os.getpid(), number)

    child = start_child(lambda: build(loaded, tmp_path / "run", RecordingView(stop)), tmp_path / "log")
    assert exit_code(child) == (-number if number == signal.SIGKILL else 128 + number)
    assert in_child(lambda: build(loaded, tmp_path / "run", RecordingView()), tmp_path / "log") == 0
    assert members_of(tmp_path / "run") == members_of(tmp_path / "whole")
    assert [each.get("rolled_back_to") for each in records(tmp_path / "run") if "spike" in each] == [40]


def test_a_rollback_by_the_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KinfolkError, match="must not depend on the clock"):
        family(tmp_path, "recipe.checkpoints={seconds: 3}", "recipe.spikes.action=rollback")
