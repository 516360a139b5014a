"""A family built on a trunk whose stages begin with patches: killed anywhere, extended, averaged, by two processes."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCAB, random_model
from micro import (
    CONTEXT,
    SEQUENCES_PER_STEP,
    RecordingView,
    family,
    first_state,
    in_child,
    in_ranks,
    leftovers,
    members_of,
)
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.origin import stage_config
from kinfolk.build.run import Run, open_run
from kinfolk.build.snapshot import average_stage, averaging_weights, export_stage
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.evaluate.measure import measure, run_of
from kinfolk.evaluate.samples import sample_text
from kinfolk.family.load import LoadedFamily
from kinfolk.plan.stages import Continue, Patch
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone, start_engine
from kinfolk.train.model import empty_model
from kinfolk.train.monitor import read_metrics
from kinfolk.train.objective import PatchLoss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.rate import remaining

TOKENS = SEQUENCES_PER_STEP * CONTEXT
MEMBERS = [16, 24]
"""Token-level steps of each member alone."""


def trunk(folder: Path, *overrides: str, members: int = 2) -> LoadedFamily:
    """Stages small-patch (2 steps), small-undecayed, small, and the same of large; saved every 2 steps."""
    small, large = family(folder).family.members
    listed = [
        {"name": each.name, "shape": each.shape.model_dump(), "tokens": steps * TOKENS}
        for each, steps in zip((small, large), MEMBERS, strict=True)
        if each.shape
    ]
    return family(
        folder,
        "strategy=trunk",
        "patch={size: 4, share: 0.5, members: all}",
        *overrides,
        members=listed[:members],
        recipe={
            "schedule": {"warmup_share": 0.1, "decay_share": 0.25},
            "checkpoints": {"steps": 2, "keep": 3},
            "held_out_every_steps": 4,
        },
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk")
    build(trunk(folder), folder / "run", RecordingView())
    return folder


class EveryStep(RecordingView):
    """Counts steps of either level."""

    def stepped(self, record: dict[str, Any]) -> None:
        super().stepped({"loss": record["patch_loss"]} if "patch_loss" in record else record)


def run_of_trunk(folder: Path) -> Run:
    return open_run(trunk(folder), folder / "run")


def state_of(run: Run, stage: str, path: Path | None = None) -> dict[str, torch.Tensor]:
    model = empty_model(stage_config(run.plan.stage(stage), run.family, run.store))
    tensors = checkpoint.tensors_of(model, make_optimizer(model, run.family.recipe.optimizer))
    saved = path or checkpoint.latest(run.checkpoints(stage))
    assert saved is not None
    wanted = tensors if checkpoint.has_optimizer(saved) else checkpoint.tensors_of(model, None)
    checkpoint.load(saved, wanted, alone())
    return wanted


def test_what_is_recorded(whole: Path) -> None:
    run = run_of_trunk(whole)
    names = [stage.name for stage in run.plan.stages]
    assert names == ["small-patch", "small-undecayed", "small", "large-patch", "large-undecayed", "large"]
    finished = {event["stage"]: event for event in run.ledger.events("stage_finished")}
    sequences = positions = 0
    trunk_at = (0, 0)
    for stage in run.plan.stages:
        records = read_metrics(run.stages / stage.name / "metrics.jsonl")
        patched = isinstance(stage.objective, Patch)
        own, other = ("patch_loss", "loss") if patched else ("loss", "patch_loss")
        assert sum(own in record for record in records) == stage.steps and not any(
            other in record for record in records
        )
        assert any("held_out_loss" in record for record in records)
        event = finished[stage.name]
        assert (f"final_{own}" in event, f"final_{other}" in event) == (True, False)
        assert event["positions"] * (4 if patched else 1) == event["tokens"] == stage.steps * stage.tokens_per_step
        assert event["flops"]["six_nd"] == 6 * stage.parameters * event["positions"]
        steps = [record for record in records if own in record]
        assert steps[-1]["tokens"] == event["tokens"]
        if stage.name == "large-patch":  # goes on where the trunk was left, not where the branch ended
            sequences, positions = trunk_at
        before = run.plan.sequences_before(stage.name, CONTEXT)
        assert 0 <= before - sequences < 4
        sequences = before + round(stage.tokens) // CONTEXT
        positions += round(event["positions"])
        saved = checkpoint.latest(run.checkpoints(stage.name))
        assert saved is not None
        place = checkpoint.position_of(saved)
        assert (place.sequences, place.positions) == (sequences, positions)
        assert (place.patch_size, place.token_ready) == ((4, False) if patched else (1, True))
        if stage.name == "small-undecayed":
            trunk_at = sequences, positions
    # After the switch the next-token loss falls below what it was at the switch.
    switch, end = (
        [
            record["held_out_loss"]
            for record in read_metrics(run.stages / name / "metrics.jsonl")
            if "held_out_loss" in record
        ][-1]
        for name in ("large-patch", "large")
    )
    assert end < switch
    warnings = json.loads((whole / "run" / "plan.json").read_text())["warnings"]
    assert any("20,000" in warning for warning in warnings)


def test_stopped_before_at_and_after_the_switch(whole: Path, tmp_path: Path) -> None:
    """After step 1 of the 2 at patch level, at the switch, behind it, and at and around the switch of a grown stage."""
    run = run_of_trunk(whole)
    names = [stage.name for stage in run.plan.stages]
    stops = [("small-patch", 1), ("small-patch", 2), ("small-undecayed", 1), ("large-patch", 2), ("large-patch", 3)]
    assert [run.plan.stage(name).steps for name in ("small-patch", "large-patch")] == [2, 3]
    (tmp_path / "run").mkdir()
    loaded, done = trunk(whole), 0
    for name, step in stops:
        at = sum(stage.steps for stage in run.plan.stages[: names.index(name)]) + step

        def kill(count: int, last: int = at - done) -> None:
            if count == last:
                os.kill(os.getpid(), signal.SIGTERM)

        assert in_child(lambda kill=kill: build(loaded, tmp_path / "run", EveryStep(kill)), tmp_path / "log") == 143
        done = at
        saved = checkpoint.latest(tmp_path / "run" / "stages" / name / "checkpoints")
        assert saved is not None and checkpoint.step_of(saved) == step
    build(loaded, tmp_path / "run", RecordingView())
    assert members_of(tmp_path / "run") == members_of(whole / "run")
    assert leftovers(tmp_path) == []
    for name in ("small-undecayed", "large-undecayed"):  # what averages are made of
        kept = [path.name for path in checkpoint.checkpoints(tmp_path / "run" / "stages" / name / "checkpoints")]
        assert kept == [path.name for path in checkpoint.checkpoints(run.checkpoints(name))]


@pytest.mark.parametrize("optimizer", ["carry", "reset"])
def test_the_optimizer_is_carried_over_the_switch_or_begun_anew(tmp_path: Path, optimizer: str, whole: Path) -> None:
    run = run_of_trunk(whole)
    stage = run.plan.stage("small-undecayed")
    changed = replace(stage, source=Continue("small-patch", optimizer))  # type: ignore[arg-type]
    state, position, _ = first_state(changed, run.plan, run.family, run.store, run.stages)
    before = state_of(run, "small-patch")
    carried = {name for name in state if name.startswith("optimizer.")}
    assert carried == ({name for name in before if name.startswith("optimizer.")} if optimizer == "carry" else set())
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert (position.step, position.token_ready) == (0, False)


def test_a_patch_stage_is_refused_unless_forced(whole: Path, tmp_path: Path) -> None:
    run = whole / "run"
    with pytest.raises(KinfolkError, match="token_ready") as caught:
        export_stage(run, "small-patch", tmp_path / "model", force=False)
    assert "--force" in str(caught.value) and not (tmp_path / "model").exists()
    forced = export_stage(run, "small-patch", tmp_path / "model", force=True)
    path = str(forced.folder)
    assert AutoConfig.from_pretrained(path).token_ready is False
    assert "no language model" in (forced.folder / "README.md").read_text()
    with pytest.raises(KinfolkError, match="token_ready"):
        measure(path, text=None, run=run)
    assert measure(path, text=None, run=run, force=True).loss == pytest.approx(forced.held_out["loss"])
    model, tokenizer = load_checkpoint(path, "cpu", force=True)
    with pytest.raises(KinfolkError, match="token_ready"):
        sample_text(model, tokenizer, ["The"], 3, 0, "cpu")
    assert sample_text(model, tokenizer, ["The"], 3, 0, "cpu", force=True)
    with pytest.raises(KinfolkError, match="token_ready"):
        average_stage(run, "small-patch", 5, "linear", tmp_path / "mean")
    # After the token part all of them work.
    ready = export_stage(run, "small-undecayed", tmp_path / "ready", force=False)
    assert measure(str(ready.folder), text=None, run=run).loss == pytest.approx(ready.held_out["loss"])
    model, tokenizer = load_checkpoint(ready.folder, "cpu")
    assert sample_text(model, tokenizer, ["The"], 3, 0, "cpu")
    assert not hasattr(model.config, "token_ready")


def test_an_average_is_the_weighted_mean_of_spaced_checkpoints(whole: Path, tmp_path: Path) -> None:
    run = run_of_trunk(whole)
    steps = run.plan.stage("large-undecayed").steps
    spaced = list(range(2, steps + 1, 2))[-3:]
    shutil.rmtree(whole / "run" / "averages", ignore_errors=True)
    for decay, last, chosen in (("linear", 5, spaced), ("1-sqrt", 2, spaced[1:])):
        made = average_stage(whole / "run", None, last, decay, tmp_path / decay)  # type: ignore[arg-type]
        assert (made.stage, list(made.steps)) == ("large-undecayed", chosen)
        folder = run.checkpoints("large-undecayed")
        states = [state_of(run, made.stage, folder / f"step-{step:08d}") for step in chosen]
        weights = averaging_weights(len(chosen), decay)  # type: ignore[arg-type]
        for name, tensor in load_file(tmp_path / decay / "model.safetensors").items():
            mean = sum(w * state[f"model.{name}"].double() for w, state in zip(weights, states, strict=True))
            assert torch.equal(tensor, mean.float()), name
        assert run_of(str(tmp_path / decay)) is None and made.held_out["loss"] > 0
    default = average_stage(whole / "run", "small-undecayed", 3, "linear", None)
    assert default.folder == whole / "run" / "averages" / "small-undecayed"
    assert run_of(str(default.folder)) == (whole / "run").resolve()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(KinfolkError, match="something else"):
        average_stage(whole / "run", None, 3, "linear", tmp_path / "mine")
    with pytest.raises(KinfolkError, match="two or more"):
        average_stage(whole / "run", "large", 3, "linear", None)
    with pytest.raises(KinfolkError, match="use one of small-patch"):
        average_stage(whole / "run", "nothing", 3, "linear", None)
    with pytest.raises(KinfolkError, match="no build"):
        average_stage(tmp_path, None, 3, "linear", None)


@pytest.mark.parametrize("decay", ["linear", "cosine", "1-sqrt"])
def test_averaging_weights_stand_for_a_decay(decay: Any) -> None:
    """Brute force: decayed steps of a walk with constant increments g_i equal the mean of its checkpoints."""
    weights = averaging_weights(6, decay)
    assert sum(weights) == pytest.approx(1) and min(weights) > 0
    increments = [3.0, -1.0, 4.0, 1.5, -5.0]
    walk = [7.0]
    for increment in increments:
        walk.append(walk[-1] + increment)
    decayed = walk[0] + sum(remaining(decay, (i + 1) / 6) * g for i, g in enumerate(increments))
    assert sum(w * x for w, x in zip(weights, walk, strict=True)) == pytest.approx(decayed)


def test_a_finished_family_is_extended(whole: Path, tmp_path: Path) -> None:
    """Only the new member's stages are trained, and it ends as if it had been there from the beginning."""
    build(trunk(whole, members=1), tmp_path / "run", RecordingView())
    before = members_of(tmp_path / "run")
    assert {name.split("/")[0] for name in before} == {"small"}
    view, extended = EveryStep(), trunk(whole)
    build(extended, tmp_path / "run", view)
    assert [name for name, _ in view.started] == ["large-patch", "large-undecayed", "large"]
    after = members_of(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert after == members_of(whole / "run")
    assert Ledger(tmp_path / "run" / "ledger.jsonl").events("extended")[0]["members"] == ["large"]
    plans = [json.loads((folder / "run" / "plan.json").read_text()) for folder in (whole, tmp_path)]
    assert plans[0] == plans[1]
    # What was added stays, and nothing else may change.
    for loaded in (trunk(whole, members=1), trunk(whole, "recipe.seed=3"), trunk(whole, "members.0.tokens=6000")):
        with pytest.raises(KinfolkError, match="another family file"):
            build(loaded, tmp_path / "run", RecordingView())
    build(extended, tmp_path / "run", view)
    assert "nothing to do" in view.said[-1]


def test_an_extension_that_would_change_the_past_is_refused(tmp_path: Path) -> None:
    """The last member of such a chain was not split from its decay, and with a larger one behind it it would be."""
    chain = ("strategy=progressive", "growth.start=undecayed", "patch=null")
    build(trunk(tmp_path, *chain, members=1), tmp_path / "run", RecordingView())
    ledger = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    plan = (tmp_path / "run" / "plan.json").read_bytes()
    with pytest.raises(KinfolkError, match="stage small would be trained in another way") as caught:
        build(trunk(tmp_path, *chain), tmp_path / "run", RecordingView())
    assert "strategy trunk" in str(caught.value)
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == ledger
    assert (tmp_path / "run" / "plan.json").read_bytes() == plan


def test_a_corpus_too_small_for_a_row_of_patches_is_refused(tmp_path: Path) -> None:
    loaded = trunk(tmp_path, "patch={size: 1024, share: 0.5}", "recipe.schedule.warmup_share=0")
    with pytest.raises(KinfolkError, match="one sequence of patches of 1024"):
        build(loaded, tmp_path / "run", RecordingView())


def test_two_processes_train_what_one_trains(whole: Path, tmp_path: Path) -> None:
    loaded, log = trunk(whole, members=1), tmp_path / "log"
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    one, two = (load_file(run / "members" / "small" / "model.safetensors") for run in (whole / "run", tmp_path / "run"))
    for name, tensor in one.items():
        assert torch.linalg.norm(two[name] - tensor) < 1e-3 * torch.linalg.norm(tensor), name


SHARDED = ["llama", "gemma2", "gemma3_text untied", "gpt2", "gpt_neox", "mixtral"]


def test_every_architecture_is_sharded(tmp_path: Path) -> None:
    """Patch and next-token loss, and gradients, of two processes that share a batch, against one process."""
    rows = torch.randint(VOCAB, (4, 4 * 8), generator=torch.Generator().manual_seed(0))

    def work() -> None:
        with start_engine() as engine:
            for name in SHARDED:
                reference, model = random_model(name), random_model(name)
                expected = PatchLoss(reference, Patch(4), z_coefficient=0.01)
                total = expected(rows).minimised
                total.backward()
                loss = PatchLoss(model, Patch(4), z_coefficient=0.01)
                engine.distribute(loss)
                assert sum(isinstance(module, FSDPModule) for module in loss.modules()) == 3, (
                    name
                )  # two blocks, the rest
                own = loss(rows[2 * engine.rank : 2 * engine.rank + 2]).minimised
                (own * 2).backward()  # sharding takes the mean over processes
                whole = engine.sum(own.detach().double().cpu())
                assert torch.allclose(whole, total.double(), rtol=1e-5), name
                gradients = dict(reference.named_parameters())
                for parameter, value in model.named_parameters():
                    right, found = gradients[parameter].grad, value.grad.full_tensor()  # type: ignore[union-attr]
                    assert right is not None
                    assert torch.linalg.norm(found - right) <= 1e-4 * torch.linalg.norm(right), (name, parameter)
                loss.eval(), expected.eval()
                assert torch.allclose(loss(rows)[1], expected(rows)[1], rtol=1e-5), name

    log = tmp_path / "log"
    assert in_ranks(work, log) == [0, 0], log.read_text()
