"""`kinfolk grow RUN/stages/STAGE`: weights and Adam's state of a training checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from micro import family
from typer.testing import CliRunner

from kinfolk.build.growing import grow_stage
from kinfolk.build.origin import load_stage_model
from kinfolk.build.run import Run, open_run
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.growth.sizes import Sizes, with_fields
from kinfolk.plan.stages import Dynamics, Operator
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone

SHAPE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(family(finished.parent), finished)


def tensors_in(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    found = {name: torch.empty_like(value) for name, value in like.items()}
    checkpoint.load(saved, found, alone())
    return found


def test_weights_and_moments_are_grown(run: Run, tmp_path: Path) -> None:
    stage = run.plan.stages[0]
    assert stage.shape is not None
    parent = checkpoint.tensors_of(load_stage_model(stage, run.family, run.store, run.stages), None)
    weights = {name.removeprefix("model."): value for name, value in parent.items()}
    moments = {
        f"optimizer.{kind}.{name}": value for name, value in weights.items() for kind in ("exp_avg", "exp_avg_sq")
    }
    state = tensors_in(run.stages / stage.name, moments)
    target, child = tmp_path / "target", with_fields(Sizes(stage.shape), dict(SHAPE))
    to = ",".join(f"{name}={value}" for name, value in SHAPE.items())
    printed = CliRunner().invoke(
        app,
        ["grow", str(run.stages / stage.name), str(target), "--json", "--to", to],
    )
    assert printed.exit_code == 0, printed.exception
    assert json.loads(printed.stdout)["passed"] is True
    assert json.loads(printed.stdout)["optimizer"] == "grown"
    wanted = grow_weights(weights, "llama", stage.shape, child, Operator())
    first = {name: state[f"optimizer.exp_avg.{name}"] for name in weights}
    second = {name: state[f"optimizer.exp_avg_sq.{name}"] for name in weights}
    grown = grow_moments(first, second, "llama", stage.shape, child, Operator())
    expected = {f"model.{name}": value for name, value in wanted.items()}
    for kind, values in zip(("exp_avg", "exp_avg_sq"), grown, strict=True):
        expected |= {f"optimizer.{kind}.{name}": value for name, value in values.items()}
    found = tensors_in(target, expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found["optimizer.exp_avg.model.layers.0.mlp.up_proj.weight"].any()
    saved = checkpoint.latest(target / "checkpoints")
    before = checkpoint.latest(run.stages / stage.name / "checkpoints")
    assert saved is not None and before is not None
    assert checkpoint.position_of(saved).step == 0
    assert checkpoint.position_of(saved).sequences == checkpoint.position_of(before).sequences
    assert json.loads((target / "growth.json").read_text())["parent"]["stage"] == stage.name


def test_what_is_no_stage_or_cannot_grow(run: Run, tmp_path: Path) -> None:
    stage = run.stages / run.plan.stages[0].name
    (tmp_path / "stages" / "lost" / "checkpoints").mkdir(parents=True)
    for source, changes, message in (
        (stage, {"hidden_size": 8}, "cannot shrink"),
        (tmp_path / "stages" / "lost", SHAPE, "no stage of a run directory"),
    ):
        with pytest.raises(KinfolkError, match=message):
            grow_stage(source, tmp_path / "target", dict(changes), Operator(), Dynamics())
    assert not (tmp_path / "target").exists()
