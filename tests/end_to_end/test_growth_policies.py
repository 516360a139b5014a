"""Builds whose family file names another policy of training on after a growth."""

import os
import signal
from pathlib import Path

import pytest
import torch
from micro import RecordingView, family, in_child, in_ranks, members_of
from safetensors.torch import load_file

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.family.load import LoadedFamily

POLICIES = {
    "sparkling": ("growth.optimizer=asymmetric", "growth.rates=rewarm_new", "growth.rewarm_steps=9"),
    "inherit": ("growth.rates=inherit",),
}


@pytest.fixture(scope="module", params=list(POLICIES))
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp(request.param)
    build(policy(folder, request.param), folder / "run", RecordingView())
    return folder, request.param


def policy(folder: Path, name: str, *overrides: str) -> LoadedFamily:
    """With a trunk and branches (the grown stage is continued), at widths that two processes share unevenly."""
    larger = {"num_hidden_layers": 2, "hidden_size": 28, "num_attention_heads": 4, "num_key_value_heads": 2}
    larger |= {"head_dim": 8, "intermediate_size": 39}
    largest = larger | {"hidden_size": 32, "intermediate_size": 48}
    smaller = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    smaller |= {"head_dim": 8, "intermediate_size": 25}
    schedule = {"schedule": {"warmup_share": 0.1, "decay_share": 0.3}}
    shapes = {"small": smaller, "large": larger, "largest": largest}
    members = [
        {"name": name, "shape": shape, "tokens": 3_000 * 1.4**i} for i, (name, shape) in enumerate(shapes.items())
    ]
    return family(folder, "growth.start=undecayed", *POLICIES[name], *overrides, members=members, recipe=schedule)


def difference(one: Path, other: Path, member: str) -> float:
    """Of two runs' members: the largest relative difference of a tensor."""
    left, right = (load_file(each / "members" / member / "model.safetensors") for each in (one, other))
    return max(float(torch.linalg.norm(left[name] - each) / torch.linalg.norm(each)) for name, each in right.items())


@pytest.mark.parametrize("alone", ["sparkling"], indirect=True)
def test_a_killed_build_ends_with_the_same_bytes(alone: tuple[Path, str], tmp_path: Path) -> None:
    """Killed in the first grown stage while its new coordinates warm up, and in the last one."""
    loaded, folder, log = policy(*alone), tmp_path / "run", tmp_path / "log"
    ledger = Ledger(alone[0] / "run" / "ledger.jsonl")
    started = {each["stage"]: each["source"] for each in ledger.events("stage_started")}
    assert started["largest"]["dynamics"]["rates"] == started["large-undecayed"]["dynamics"]["rates"] == "rewarm_new"
    stages = {each["stage"]: each["steps"] for each in ledger.events("stage_finished")}
    first = stages["small-undecayed"] + stages["small"]

    def work(step: int) -> None:
        def die(count: int) -> None:
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        build(loaded, folder, RecordingView(die))

    for step in (first + 6, stages["large-undecayed"] - 4 + stages["large"] + 6):
        assert in_child(lambda step=step: work(step), log) == -signal.SIGKILL, log.read_text()
    assert in_child(lambda: build(loaded, folder, RecordingView()), log) == 0, log.read_text()
    resumed = [(each["stage"], each["step"]) for each in Ledger(folder / "ledger.jsonl").events("stage_resumed")]
    assert resumed == [("large-undecayed", 4), ("largest", 4)]
    assert members_of(folder) == members_of(alone[0] / "run")


def test_two_processes_train_what_one_trains(alone: tuple[Path, str], tmp_path: Path) -> None:
    loaded, log = policy(*alone), tmp_path / "log"
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    for member in ("small", "large", "largest"):
        assert difference(tmp_path / "run", alone[0] / "run", member) < 4e-3


def test_the_policy_changes_what_is_trained(alone: tuple[Path, str], tmp_path: Path) -> None:
    """Guards the test above: by far more than two processes differ from one."""
    loaded = policy(*alone, "growth.optimizer=carry", "growth.rates=uniform")
    build(loaded, tmp_path / "run", RecordingView())
    same, other = (members_of(folder / "run") for folder in (alone[0], tmp_path))
    assert same["small/model.safetensors"] == other["small/model.safetensors"]
    assert difference(tmp_path / "run", alone[0] / "run", "large") > 0.05
