import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import CONTEXT, RecordingView, family, first_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from kinfolk.build.origin import stage_config
from kinfolk.data import tokens
from kinfolk.data.loader import batch, epochs, sequences_per_epoch
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Checkpoints, Recipe
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Rate, Stage
from kinfolk.plan.strategies import independent
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone
from kinfolk.train.interruption import Interrupted, Interruption
from kinfolk.train.model import empty_model, new_model, parameters_of
from kinfolk.train.monitor import read_metrics
from kinfolk.train.rate import learning_rate
from kinfolk.train.saving import save
from kinfolk.train.stage import Method, Trained, held_out_sample, rows_of_rank, train_stage


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, TokenStore]:
    folder = tmp_path_factory.mktemp("stage")
    loaded = family(folder)
    return loaded.family, tokens.prepare(loaded.family, folder, folder / "data")


def begin(spec: tuple[Family, TokenStore], folder: Path) -> Stage:
    """The larger member alone, with its first checkpoint in `folder`."""
    plan = independent(spec[0])
    stage = plan.stages[-1]
    state, position, _ = first_state(stage, plan, *spec, folder)
    save(folder / "checkpoints", state, position, alone())
    return stage


def train(
    spec: tuple[Family, TokenStore],
    stage: Stage,
    folder: Path,
    view: RecordingView | None = None,
    interruption: Interruption | None = None,
    **changes: object,
) -> Trained:
    recipe = spec[0].recipe.model_copy(update=changes)
    model = empty_model(stage_config(stage, *spec))
    watch = interruption or Interruption()
    method = Method(recipe, CONTEXT, "float32")
    return train_stage(stage, model, spec[1], method, folder, alone(), view or RecordingView(), watch)


def last_tensors(spec: tuple[Family, TokenStore], stage: Stage, folder: Path) -> dict[str, torch.Tensor]:
    from kinfolk.train.optimizer import make_optimizer

    model = empty_model(stage_config(stage, *spec))
    tensors = checkpoint.tensors_of(model, make_optimizer(model, spec[0].recipe.optimizer))
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None and checkpoint.position_of(saved).step == stage.steps
    checkpoint.load(saved, tensors, alone())
    return tensors


def plain_loop(spec: tuple[Family, TokenStore], stage: Stage, recipe: Recipe) -> tuple[list[float], dict]:
    """What a stage should do, written down once more with nothing but torch and transformers."""
    model = new_model(stage_config(stage, *spec), spec[0].recipe.seed + 1)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if "norm" not in name], "weight_decay": recipe.optimizer.weight_decay},
            {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
        ],
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        foreach=False,
    )
    losses = []
    for step in range(stage.steps):
        rows = torch.from_numpy(batch(spec[1].train, CONTEXT, step * 8, 8, recipe.seed))
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for _, p in named))
        for _, parameter in named:
            parameter.grad *= min(1.0, recipe.gradient_clip / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage.rate, step, stage.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, parameters_of(model)


@pytest.mark.parametrize(("micro", "clip"), [(1, 1.0), (3, 1.0), (8, 1.0), (None, 0.1), (2, 1e9)])
def test_equals_a_plain_loop_whatever_the_micro_batch(
    spec: tuple[Family, TokenStore], tmp_path: Path, micro: int | None, clip: float
) -> None:
    stage = begin(spec, tmp_path)
    changes = {"sequences_per_micro_batch": micro, "gradient_clip": clip}
    train(spec, stage, tmp_path, **changes)
    losses, weights = plain_loop(spec, stage, spec[0].recipe.model_copy(update=changes))
    records = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-5)
    final = last_tensors(spec, stage, tmp_path)
    for name, expected in weights.items():
        difference = torch.linalg.norm(final[f"model.{name}"] - expected) / torch.linalg.norm(expected)
        assert difference < 1e-4, name


def test_bfloat16_products_train_almost_alike(spec: tuple[Family, TokenStore], tmp_path: Path) -> None:
    stage, losses = begin(spec, tmp_path / "float32"), {}
    begin(spec, tmp_path / "bfloat16")
    for precision in ("float32", "bfloat16"):
        model = empty_model(stage_config(stage, *spec))
        folder = tmp_path / precision
        method = Method(spec[0].recipe, CONTEXT, precision)
        train_stage(stage, model, spec[1], method, folder, alone(), RecordingView(), Interruption())
        losses[precision] = [each["loss"] for each in read_metrics(folder / "metrics.jsonl") if "loss" in each]
        assert next(model.parameters()).dtype == torch.float32
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert losses["bfloat16"] != losses["float32"]


def test_a_clip_changes_the_update(spec: tuple[Family, TokenStore]) -> None:
    """Adam forgets a constant factor, not one that differs between steps: so the test above can see the clip."""
    stage = independent(spec[0]).stages[-1]
    one, other = (plain_loop(spec, stage, spec[0].recipe.model_copy(update={"gradient_clip": c})) for c in (0.1, 1e9))
    assert abs(one[0][-1] - other[0][-1]) > 1e-3


def test_what_is_recorded(spec: tuple[Family, TokenStore], tmp_path: Path) -> None:
    stage, view = begin(spec, tmp_path), RecordingView()
    trained = train(spec, stage, tmp_path, view)
    records = read_metrics(tmp_path / "metrics.jsonl")
    per_epoch = sequences_per_epoch(len(spec[1].train), CONTEXT)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, stage.steps + 1))
    assert [record["step"] for record in records if "held_out_loss" in record] == [5, 10, stage.steps]
    assert steps[-1]["tokens"] == stage.steps * 128 == stage.tokens
    assert steps[-1]["epoch"] == trained.epochs == epochs(stage.steps * 8, per_epoch)
    assert [record["learning_rate"] for record in steps] == [
        learning_rate(stage.rate, step, stage.steps) for step in range(stage.steps)
    ]
    assert trained.seconds >= steps[-1]["seconds"] > 0
    assert view.started == [(stage.name, 0)] and view.steps == stage.steps
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "gradient_norm", "held_out_loss"} <= set(board.Tags()["scalars"])
    assert len(board.Scalars("loss")) == stage.steps
    # The held-out loss is that of the finished weights on the sample, as transformers computes it.
    model = empty_model(stage_config(stage, *spec))
    checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"), checkpoint.tensors_of(model, None), alone())
    rows = held_out_sample(spec[1], CONTEXT)
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows).loss.item()
    assert records[-1]["held_out_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stops", [[3], [4], [1, 6, 13], [14]])
def test_an_interrupted_stage_ends_with_the_same_bytes(
    spec: tuple[Family, TokenStore], tmp_path: Path, stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorBoard reads event files by name: of two that one process began in one second, the 10th before the 9th.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    stage = begin(spec, whole)
    train(spec, stage, whole)
    begin(spec, parted)
    done = 0
    for stop in stops:

        def signal_at(count: int, at: int = stop - done) -> None:
            if count == at:
                os.kill(os.getpid(), signal.SIGTERM)

        interruption = Interruption()
        with interruption.watched(), pytest.raises(Interrupted):
            train(spec, stage, parted, RecordingView(signal_at), interruption)
        saved = checkpoint.latest(parted / "checkpoints")
        assert saved is not None and checkpoint.position_of(saved).step == stop
        done = stop
    train(spec, stage, parted)
    expected, found = last_tensors(spec, stage, whole), last_tensors(spec, stage, parted)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    def figures(folder: Path) -> list[dict]:
        unlike = ("seconds", "tokens_per_second")
        records = read_metrics(folder / "metrics.jsonl")
        return [{key: value for key, value in record.items() if key not in unlike} for record in records]

    assert figures(parted) == figures(whole)
    steps = [event.step for event in EventAccumulator(str(parted / "tensorboard")).Reload().Scalars("loss")]
    assert steps == list(range(1, stage.steps + 1))


def test_a_second_signal_stops_at_once(spec: tuple[Family, TokenStore], tmp_path: Path) -> None:
    stage = begin(spec, tmp_path)

    def twice(count: int) -> None:
        if count == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    interruption = Interruption()
    with interruption.watched(), pytest.raises(Interrupted) as stop:
        train(spec, stage, tmp_path, RecordingView(twice), interruption)
    assert stop.value.number == signal.SIGINT
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and checkpoint.position_of(saved).step == 4  # of the plan, not of the signal


def finite_loss_of(spec: tuple[Family, TokenStore], stage: Stage, saved: Path) -> bool:
    model = empty_model(stage_config(stage, *spec))
    checkpoint.load(saved, checkpoint.tensors_of(model, None), alone())
    rows = held_out_sample(spec[1], CONTEXT)
    with torch.no_grad():
        return math.isfinite(model(input_ids=rows, labels=rows).loss.item())


@pytest.mark.parametrize(("steps", "peak"), [(1, 1e39), (2, 1e30), (8, 1e30)])
def test_a_diverging_stage_stops_and_keeps_the_last_good_weights(
    spec: tuple[Family, TokenStore], tmp_path: Path, steps: int, peak: float
) -> None:
    """At any step, also when the last update is the one that breaks the weights, and when every step is saved."""
    stage = replace(begin(spec, tmp_path), steps=steps, tokens=steps * 128, rate=Rate(peak, 0, 0, "linear"))
    with pytest.raises(KinfolkError, match=r"(loss|norm) (nan|inf)") as caught:
        train(spec, stage, tmp_path, checkpoints=Checkpoints(steps=1))
    assert "peak_learning_rate" in str(caught.value) and stage.name in str(caught.value)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and str(saved) in str(caught.value)
    assert finite_loss_of(spec, stage, saved)
    assert all(math.isfinite(record["loss"]) for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record)


def test_poisoned_weights_stop_the_first_step(spec: tuple[Family, TokenStore], tmp_path: Path) -> None:
    stage = begin(spec, tmp_path)
    model = new_model(stage_config(stage, *spec), 0)
    with torch.no_grad():
        model.model.norm.weight[3] = math.inf
    save(tmp_path / "checkpoints", checkpoint.tensors_of(model, None), checkpoint.Position(2, 16), alone())
    with pytest.raises(KinfolkError, match="at step 3 of 14"):
        train(spec, stage, tmp_path)


def test_a_finished_stage_has_nothing_left_to_do(spec: tuple[Family, TokenStore], tmp_path: Path) -> None:
    stage = begin(spec, tmp_path)
    train(spec, stage, tmp_path)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    view = RecordingView()
    train(spec, stage, tmp_path, view)
    assert view.steps == 0
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


def test_ranks_share_every_batch_without_rest_or_overlap() -> None:
    assert [list(rows_of_rank(6, rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(KinfolkError, match="8 sequences does not divide among 3"):
        rows_of_rank(8, 0, 3)
