from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import CONTEXT, LARGE, SMALL, RecordingView, family, first_state

from kinfolk.build import growth_state, origin
from kinfolk.build.build import build
from kinfolk.build.origin import load_stage_model
from kinfolk.build.run import Run, open_run
from kinfolk.data.loader import sequence_order, sequences_per_epoch
from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.grow import grow_moments
from kinfolk.growth.made import Made
from kinfolk.growth.optimizer import grow_optimizer
from kinfolk.plan.stages import Continue, Dynamics, Grow, Operator, Plan, Rate, Scratch, Stage, Token
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone
from kinfolk.train.interruption import Interruption
from kinfolk.train.model import empty_model
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.saving import save
from kinfolk.train.stage import Method, train_stage


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(family(finished.parent), finished)


def grown_stage(run: Run) -> Stage:
    return next(stage for stage in run.plan.stages if isinstance(stage.source, Grow))


def last_state(run: Run, stage: Stage) -> dict[str, torch.Tensor]:
    model = load_stage_model(stage, run.family, run.store, run.stages)
    tensors = checkpoint.tensors_of(model, make_optimizer(model, run.family.recipe.optimizer))
    saved = checkpoint.latest(run.checkpoints(stage.name))
    assert saved is not None
    checkpoint.load(saved, tensors, alone())
    return tensors


def test_the_ledger_bears_out_the_claim(run: Run) -> None:
    (grown,) = run.ledger.events("grown")
    proof = grown["verification"]
    assert proof["claims_preservation"] is True and proof["passed"] is True
    for precision in ("float32", "float64"):
        assert 0 <= proof[precision]["max_abs_logit_difference"] <= 1e-4 * proof[precision]["max_abs_logit"]
        assert proof[precision]["loss_after"] == pytest.approx(proof[precision]["loss_before"], rel=1e-4)
    assert (grown["stage"], grown["parent"]) == (grown_stage(run).name, grown_stage(run).parent)
    assert grown["seconds"] > 0


def test_a_corrupted_growth_fails_the_build_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown_tensors = growth_state.grown_tensors

    def corrupted(*arguments: Any) -> dict[str, Made]:
        tensors = grown_tensors(*arguments)
        name = "model.model.layers.0.mlp.down_proj.weight"
        blocks = tensors[name].blocks
        return tensors | {name: replace(tensors[name], blocks=lambda: ((row, 1.01 * block) for row, block in blocks()))}

    monkeypatch.setattr(growth_state, "grown_tensors", corrupted)
    loaded, folder = family(tmp_path), tmp_path / "run"
    with pytest.raises(KinfolkError, match="does not"):
        build(loaded, folder, RecordingView())
    run = open_run(loaded, folder)
    assert [path.name for path in (run.stages / grown_stage(run).name).rglob("*")] == ["checkpoints"]
    assert not run.ledger.events("grown")
    assert run.member("small").is_dir() and not run.member("large").exists()
    monkeypatch.undo()
    build(loaded, folder, RecordingView())
    assert run.member("large").is_dir()


@pytest.mark.parametrize("optimizer", ["carry", "asymmetric", "reset"])
def test_what_becomes_of_the_optimizer(run: Run, optimizer: Any) -> None:
    stage = grown_stage(run)
    assert isinstance(stage.source, Grow)
    operator, dynamics = stage.source.operator, Dynamics(optimizer)
    stage = replace(stage, source=replace(stage.source, dynamics=dynamics))
    state, position, _ = first_state(stage, run.plan, run.family, run.store, run.stages)
    parent = run.plan.stage(str(stage.parent))
    before = last_state(run, parent)
    assert position.step == 0
    assert position.sequences == 8 * sum(each.steps for each in run.plan.lineage(parent.name))
    if optimizer == "reset":
        assert all(name.startswith("model.") for name in state)
        return
    shapes = parent.shape, stage.shape
    first, second, counts = (
        {name.removeprefix(prefix): value for name, value in before.items() if name.startswith(prefix)}
        for prefix in ("optimizer.exp_avg.", "optimizer.exp_avg_sq.", "optimizer.step.")
    )
    grown = grow_optimizer(first, second, counts, "llama", *shapes, operator, dynamics)
    for moment, tensors in zip(("exp_avg", "exp_avg_sq", "step"), grown, strict=True):
        for name, expected in tensors.items():
            assert torch.equal(state[f"optimizer.{moment}.{name}"], expected)
    steps = sum(each.steps for each in run.plan.lineage(parent.name))
    carried, _ = grow_moments(first, second, "llama", *shapes, operator)
    for name, moment in grown[0].items():
        if "layers.1." in name:
            assert not moment.any() and float(grown[2][name]) == 0
            continue
        kept = carried[name].clone()
        if optimizer == "asymmetric":  # the parent's own units are the first ones of every axis
            kept[first[name].shape[0] :] = 0
            kept[..., first[name].shape[-1] :] = 0
        assert torch.equal(moment, kept) and float(grown[2][name]) == steps
    assert any(value.any() for value in grown[0].values())


def test_no_sequence_comes_twice_before_all_have_come_once(run: Run) -> None:
    """Stage after stage of a lineage asks for the numbers that follow those of its parent."""
    numbers: list[int] = []
    for stage in run.plan.lineage(run.plan.stages[-1].name):
        first = run.plan.sequences_before(stage.name, CONTEXT)
        assert first == len(numbers)
        if stage.parent is not None:
            _, position, _ = first_state(stage, run.plan, run.family, run.store, run.stages)
            assert position.sequences == first
        numbers += range(first, first + 8 * stage.steps)
    per_epoch = sequences_per_epoch(len(run.store.train), CONTEXT)
    assert len(numbers) < per_epoch
    order = sequence_order(0, len(numbers), per_epoch, run.family.recipe.seed)
    assert len(set(order.tolist())) == len(numbers)


def test_a_fork_goes_on_from_one_trunk(run: Run, tmp_path: Path) -> None:
    """A trunk, two branches that decay differently, and a growth from the trunk, through the executor's parts."""
    hold, decay = Rate(0.01, 2, 0, "linear"), Rate(0.01, 0, 4, "linear")
    common = {"shape": Shape(**SMALL), "parameters": 1.0, "objective": Token(), "tokens": 4 * 128, "steps": 4}
    plan = Plan(
        "micro",
        "trunk",
        (
            Stage("trunk", source=Scratch(0), rate=hold, **common),
            Stage("left", source=Continue("trunk"), rate=decay, **common),
            Stage("right", source=Continue("trunk"), rate=replace(decay, decay_shape="cosine"), **common),
            Stage("up", source=Grow("trunk", Operator()), rate=decay, **(common | {"shape": Shape(**LARGE)})),
        ),
    )
    states: dict[str, dict[str, torch.Tensor]] = {}
    there = replace(run, folder=tmp_path, plan=plan)
    for stage in plan.stages:
        state, position, grown = first_state(stage, plan, run.family, run.store, there.stages)
        assert (grown is not None) == (stage.name == "up")
        assert position.sequences == (0 if stage.name == "trunk" else 32)
        states[stage.name] = {name: value.clone() for name, value in state.items()}
        save(there.checkpoints(stage.name), state, position, alone())
        model = empty_model(origin.stage_config(stage, run.family, run.store))
        folder = there.stages / stage.name
        method = Method(run.family.recipe, CONTEXT, "float32")
        train_stage(stage, model, run.store, method, folder, alone(), RecordingView(), Interruption())
    trunk = last_state(there, plan.stage("trunk"))
    for branch in ("left", "right"):
        assert states[branch].keys() == trunk.keys()
        assert all(torch.equal(states[branch][name], trunk[name]) for name in trunk)
    left, right = (last_state(there, plan.stage(name)) for name in ("left", "right"))
    weight = "model.model.embed_tokens.weight"
    assert not torch.equal(left[weight], right[weight]) and not torch.equal(left[weight], trunk[weight])
