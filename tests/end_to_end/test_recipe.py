"""Families built by every optional part of the recipe: resumed, sharded, grown, in patches and from a trunk."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import CONTEXT, RecordingView, family, in_child, in_ranks, members_of
from safetensors.torch import load_file

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.run import open_run
from kinfolk.family.load import LoadedFamily
from kinfolk.train import checkpoint
from kinfolk.train.monitor import read_metrics

EVERYTHING = {
    "optimizer": {"matrices": "muon", "weight_decay_rule": "cautious", "weight_decay": 0.3},
    "z_loss": 0.02,
    "batch_warmup": {"start": 2 * CONTEXT, "share": 0.5},
    "gradient_clip": "none",
    "schedule": {"warmup_share": 0.1, "decay_share": 0.3},
}

OTHERWISE = (
    "recipe.optimizer.matrices=adamw",
    "recipe.optimizer.momentum=0.8",
    "recipe.optimizer.weight_decay_rule=everywhere",
    "recipe.z_loss=0",
    "recipe.batch_warmup=null",
    "recipe.gradient_clip=0.3",
)


def everything(folder: Path, *overrides: str) -> LoadedFamily:
    """A trunk with a patch part, branches and an asymmetric growth whose new coordinates warm up again."""
    fields = {"strategy": "trunk", "patch": {"size": 2, "share": 0.5}}
    growth = {"optimizer": "asymmetric", "rates": "rewarm_new", "rewarm_steps": 9}
    members = [{"name": "small", "tokens": 2400}, {"name": "large", "tokens": 3000}]
    document = family(folder).family.model_dump(mode="json", exclude_none=True)
    shapes = [member["shape"] for member in document["members"]]
    members = [{**member, "shape": shape} for member, shape in zip(members, shapes, strict=True)]
    return family(folder, *overrides, **fields, growth=growth, members=members, recipe=EVERYTHING)


class EveryStep(RecordingView):
    """Counts steps of either level."""

    def stepped(self, record: dict[str, Any]) -> None:
        super().stepped({"loss": record["patch_loss"]} if "patch_loss" in record else record)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    build(everything(folder), folder / "run", RecordingView())
    return folder


def records_of(run: Path, stage: str) -> list[dict[str, Any]]:
    records = read_metrics(run / "stages" / stage / "metrics.jsonl")
    return [record for record in records if "learning_rate" in record]


def test_what_is_recorded(whole: Path) -> None:
    run = open_run(everything(whole), whole / "run")
    names = [stage.name for stage in run.plan.stages]
    assert names == ["small-patch", "small-undecayed", "small", "large-undecayed", "large"]
    document = json.loads((whole / "run" / "plan.json").read_text())
    assert document["recipe"]["optimizer"]["matrices"] == "muon" and document["recipe"]["z_loss"] == 0.02
    finished = {event["stage"]: event for event in run.ledger.events("stage_finished")}
    for stage in run.plan.stages:
        records = records_of(whole / "run", stage.name)
        assert len(records) == stage.steps == finished[stage.name]["steps"]
        assert records[-1]["tokens"] == stage.tokens == finished[stage.name]["tokens"]
        own = "patch_loss" if stage.patch_size > 1 else "loss"
        assert all(0 < record["z_loss"] < 2 and record[own] > 1 for record in records)
        assert [record["tokens"] for record in records] == [
            stage.part_at(step + 1).before(stage.tokens_per_step) for step in range(stage.steps)
        ]
        saved = checkpoint.latest(run.checkpoints(stage.name))
        assert saved is not None
        tokens = run.plan.sequences_before(stage.name, CONTEXT) * CONTEXT + stage.tokens
        assert checkpoint.position_of(saved).sequences * CONTEXT == tokens
    first = records_of(whole / "run", "small-patch")
    steps = [one["tokens"] - other["tokens"] for one, other in zip(first, [{"tokens": 0}, *first], strict=False)]
    assert sorted(set(steps)) == [steps[0], 2 * steps[0], 4 * steps[0]] and steps == sorted(steps)
    assert steps[0] == 2 * CONTEXT * 2  # rows of the start, of patches of two


def test_a_killed_build_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    """Killed in the batch-size warm-up, and in the grown stage."""
    loaded, log = everything(whole), tmp_path / "log"
    steps = {each["stage"]: each["steps"] for each in Ledger(whole / "run" / "ledger.jsonl").events("stage_finished")}
    before_growth = steps["small-patch"] + steps["small-undecayed"] + steps["small"]

    def work(step: int) -> None:
        def die(count: int) -> None:
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        build(loaded, tmp_path / "run", EveryStep(die))

    for step in (6, before_growth - 4 + 6):
        assert in_child(lambda step=step: work(step), log) == -signal.SIGKILL, log.read_text()
    assert in_child(lambda: build(loaded, tmp_path / "run", EveryStep()), log) == 0, log.read_text()
    resumed = [each["stage"] for each in Ledger(tmp_path / "run" / "ledger.jsonl").events("stage_resumed")]
    assert resumed == ["small-patch", "large-undecayed"]
    assert members_of(tmp_path / "run") == members_of(whole / "run")


def difference(one: Path, other: Path, member: str) -> float:
    """Of two runs' members: the largest relative difference of a tensor."""
    left, right = (load_file(each / "members" / member / "model.safetensors") for each in (one, other))
    return max(float(torch.linalg.norm(left[name] - each) / torch.linalg.norm(each)) for name, each in right.items())


def test_two_processes_train_what_one_trains(whole: Path, tmp_path: Path) -> None:
    loaded, log = everything(whole), tmp_path / "log"
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    for stage in ("small-patch", "large"):
        for one, other in zip(records_of(tmp_path / "run", stage), records_of(whole / "run", stage), strict=True):
            assert one["z_loss"] == pytest.approx(other["z_loss"], rel=1e-3)
    for member in ("small", "large"):
        assert difference(tmp_path / "run", whole / "run", member) < 4e-3


def first_member(folder: Path, *overrides: str) -> LoadedFamily:
    """The smaller member alone, by the same recipe."""
    one = everything(folder).family.members[0].model_dump(mode="json", exclude_none=True)
    return family(folder, "strategy=independent", *overrides, members=[one], recipe=EVERYTHING)


def test_each_field_changes_what_is_trained(tmp_path: Path) -> None:
    """Guards the tests above: by far more than two processes differ from one."""
    build(first_member(tmp_path), tmp_path / "run", RecordingView())
    for number, override in enumerate(OTHERWISE):
        build(first_member(tmp_path, override), tmp_path / str(number), RecordingView())
        assert difference(tmp_path / str(number), tmp_path / "run", "small") > 0.01, override
        has_z_loss = any("z_loss" in record for record in records_of(tmp_path / str(number), "small"))
        assert has_z_loss == (override != "recipe.z_loss=0")


def test_too_many_processes_for_the_first_steps_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    loaded = first_member(tmp_path, f"recipe.batch_warmup.start={CONTEXT}", "recipe.batch_warmup.share=1")
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [2, 3]
    assert "a step of 1 sequences does not divide among 2" in log.read_text() and "batch_warmup" in log.read_text()
