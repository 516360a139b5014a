"""Builds under rate transfer: the base stays what it is, grown members train with factors of their own."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from micro import RecordingView, family, first_state, in_child, in_ranks, members_of
from safetensors.torch import load_file

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.run import open_run
from kinfolk.cli.plan_tables import print_factors
from kinfolk.family.load import LoadedFamily, load_family

POLICY = ("growth.optimizer=asymmetric", "growth.rates=rewarm_new", "growth.rewarm_steps=9")


def transferred(folder: Path, *overrides: str) -> LoadedFamily:
    """Completely transferred rates, together with rates that growth gives to coordinates."""
    return family(folder, "recipe.rate_transfer.rule=completep", *POLICY, *overrides)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transferred")
    build(transferred(folder), folder / "run", RecordingView())
    return folder


def difference(one: Path, other: Path) -> float:
    left, right = (load_file(each / "run" / "members" / "large" / "model.safetensors") for each in (one, other))
    return max(float(torch.linalg.norm(left[name] - each) / torch.linalg.norm(each)) for name, each in right.items())


def test_the_base_member_has_the_bytes_it_has_without(alone: Path, tmp_path: Path) -> None:
    build(family(tmp_path, *POLICY), tmp_path / "run", RecordingView())
    ours, theirs = (members_of(folder / "run") for folder in (alone, tmp_path))
    assert ours["small/model.safetensors"] == theirs["small/model.safetensors"]
    assert difference(alone, tmp_path) > 0.05
    grown = [Ledger(folder / "run" / "ledger.jsonl").events("grown") for folder in (alone, tmp_path)]
    assert [each["verification"] for each in grown[0]] == [each["verification"] for each in grown[1]]
    assert grown[0][0]["verification"]["passed"] is True


def test_a_killed_build_ends_with_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    loaded, log = transferred(tmp_path), tmp_path / "log"

    def die(count: int) -> None:
        if count == 12 + 6:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: build(loaded, tmp_path / "run", RecordingView(die)), log) == -signal.SIGKILL
    assert in_child(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == 0, log.read_text()
    resumed = [
        (each["stage"], each["step"]) for each in Ledger(tmp_path / "run" / "ledger.jsonl").events("stage_resumed")
    ]
    assert resumed == [("large", 4)]
    assert members_of(tmp_path / "run") == members_of(alone / "run")


def test_two_processes_train_what_one_trains(alone: Path, tmp_path: Path) -> None:
    loaded, log = transferred(tmp_path), tmp_path / "log"
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    assert difference(tmp_path, alone) < 4e-3


def test_a_member_from_scratch_begins_with_its_own_deviations(tmp_path: Path) -> None:
    """Without a step: what the stage of the larger member starts from."""
    loaded = transferred(tmp_path, "strategy=independent", "members.1.tokens=300000")
    run_folder = tmp_path / "run"
    assert in_child(lambda: build(loaded, run_folder, RecordingView(lambda count: os._exit(0)))) == 0
    run = open_run(load_family(str(run_folder / "family.yaml")), run_folder)
    state, _, _ = first_state(run.plan.stage("large"), run.plan, run.family, run.store, run.stages)
    base = (2 / (5 * 16)) ** 0.5
    assert state["model.model.norm.weight"].unique().tolist() == [0.5]
    for name, wanted in (
        ("model.embed_tokens", base),
        ("model.layers.1.self_attn.v_proj", base / 2**0.5),
        ("model.layers.1.mlp.down_proj", base / 2**0.5 / 2),  # and half of that: twice as many layers
    ):
        assert state[f"model.{name}.weight"].std().item() == pytest.approx(wanted, rel=0.1), name


def test_the_plan_says_what_every_parameter_gets(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((alone / "run" / "plan.json").read_text())
    assert document["rate_transfer"]["rule"] == "completep"
    assert document["rate_transfer"]["base_shape"] == document["stages"][0]["shape"]
    small, large = (stage["factors"] for stage in document["stages"])
    assert all(set(each.values()) == {1.0} for each in small.values())
    assert large["norm"] == {"initial": 0.5, "rate": 0.5, "decay": 2.0, "eps": 1.0}
    assert large["o_proj"]["rate"] == 0.25
    print_factors(document)
    shown = capsys.readouterr().out
    assert "by completep: multiples of what 1 x 16 has" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["", "o_proj, down_proj", "0.3536", "0.25", "4", "0.5"] in rows
    assert ["", "norm", "0.5", "0.5", "2", "1"] in rows
    assert [row[0] for row in rows if row[0]] == ["2 x 32"]  # nothing to say of the base
