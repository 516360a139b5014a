import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import exit_code, in_child, in_ranks, leftovers, start_child
from tiny_family import View, make_tokenizer, result_of, rows, write_member, write_rows
from transformers import AutoModelForCausalLM
from value_runs import SETTINGS, ask, figures

from kinfolk.build.ledger import Ledger
from kinfolk.errors import KinfolkError
from kinfolk.train import checkpoint
from kinfolk.train.monitor import read_metrics
from kinfolk.transfer.objective import Regulariser
from kinfolk.transfer.sources import Data
from kinfolk.transfer.value import train_value


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.03},
        {"zero_head": False},
        {"scheme": "cascade"},
        {"data": Data(Path("other.jsonl"), held_out_share=0.2)},
        {"value": "scratch"},
    ],
)
def test_other_settings_are_refused(place: Path, whole: Path, change: dict[str, Any]) -> None:
    if "data" in change:
        other = write_rows(place / "other.jsonl", rows(39))
        change = {"data": replace(change["data"], path=other)}
    before = result_of(whole / "value")
    with pytest.raises(KinfolkError, match="begun with other settings"):
        train_value(ask(place, **change), whole, View())
    assert result_of(whole / "value") == before


POINTS = [
    ("kinfolk.train.saving:dcp_save", 3),
    ("kinfolk.transfer.best:save", 1),
    ("kinfolk.train.monitor:Monitor.record", 1),
    ("kinfolk.train.monitor:Monitor.record", 9),
    ("kinfolk.transfer.best:Best.note", 3),
    ("kinfolk.transfer.job:train_on_demonstrations", 1),
    ("kinfolk.transfer.record:export_member", 1),
]


def killing(target: str, number: int) -> None:
    """Have a function end the process behind its `number`th call."""
    from importlib import import_module

    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    real, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        result = real(*arguments, **named)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


@pytest.mark.parametrize(("target", "number"), POINTS)
def test_killed_and_gone_on_with(place: Path, whole: Path, tmp_path: Path, target: str, number: int) -> None:
    run = tmp_path / "run"

    def work() -> None:
        killing(target, number)
        train_value(ask(place), run, View())

    assert in_child(work, tmp_path / "log") == -signal.SIGKILL, "the point was not reached"
    assert in_child(lambda: train_value(ask(place), run, View()), tmp_path / "log") == 0
    assert result_of(run / "value") == result_of(whole / "value")
    assert figures(run) == figures(whole) and leftovers(run) == []
    assert len(list((run / "training" / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 5)])
def test_a_signal_saves_and_the_training_goes_on(
    place: Path, whole: Path, tmp_path: Path, number: int, step: int
) -> None:
    def stop(count: int) -> None:
        if count == step:
            os.kill(os.getpid(), number)

    run = tmp_path / "run"
    child = start_child(lambda: train_value(ask(place), run, View(stop)), tmp_path / "log")
    assert exit_code(child) == 128 + number
    (event,) = Ledger(run / "ledger.jsonl").events("interrupted")
    assert event["step"] == step
    view = View()
    train_value(ask(place), run, view)
    assert result_of(run / "value") == result_of(whole / "value") and figures(run) == figures(whole)
    assert view.started == [("value", step)]


def test_two_processes_train_alike(place: Path, whole: Path, tmp_path: Path) -> None:
    """Sharded over two processes, with a stop in between that only one of them hears of."""
    run = tmp_path / "run"

    def stopped() -> None:
        def stop(count: int) -> None:
            if count == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        train_value(ask(place), run, View(stop))

    codes = in_ranks(stopped, tmp_path / "log")
    assert codes == [128 + signal.SIGTERM] * 2, (tmp_path / "log").read_text()
    assert in_ranks(lambda: train_value(ask(place), run, View()), tmp_path / "log") == [0, 0]
    losses = [[each["loss"] for each in figures(folder) if "loss" in each] for folder in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = (AutoModelForCausalLM.from_pretrained(folder / "value") for folder in (run, whole))
    for name, expected in other.named_parameters():
        assert torch.linalg.norm(one.get_parameter(name) - expected) < 1e-2 * torch.linalg.norm(expected), name
    assert in_ranks(lambda: train_value(ask(place, demonstrations_per_step=5), tmp_path / "odd", View())) == [2, 2]


def test_early_stopping_keeps_the_best_weights(place: Path, tmp_path: Path) -> None:
    """A rate that spoils the network soon; also what a resume at the end makes of it."""
    request = ask(place, epochs=8, learning_rate=0.3, warmup_share=0.5, held_out_every_steps=1, patience=3)
    result = train_value(request, tmp_path / "run", View())
    losses = {
        each["step"]: each["held_out_loss"]
        for each in read_metrics(tmp_path / "run" / "training" / "metrics.jsonl")
        if "held_out_loss" in each
    }
    best = min(losses, key=lambda step: (losses[step], step))
    assert result["best_step"] == best == max(losses) - 3 and result["steps"] == max(losses) < result["planned_steps"]
    assert best > 0 and max(losses.values()) > 1.02 * losses[best]
    assert result["held_out"][0]["pair_loss"] == pytest.approx(losses[best], rel=1e-6)
    kept = [checkpoint.step_of(each) for each in checkpoint.checkpoints(tmp_path / "run" / "training" / "best")]
    assert kept[-1] == best
    before = result_of(tmp_path / "run" / "value")
    ledger = tmp_path / "run" / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    view = View()
    again = train_value(request, tmp_path / "run", view)
    assert view.steps == 0 and again["best_step"] == best and result_of(tmp_path / "run" / "value") == before


def test_members_of_unlike_tokenizers_are_refused(place: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    other = write_member(tmp_path / "other", 16, 1, tokenizer)
    for change in ({"bases": (place / "small", other)}, {"value": str(other)}, {"watch": other}):
        with pytest.raises(KinfolkError, match=r"its tokenizer is not that of .*small: 1 entries differ") as caught:
            train_value(ask(place, **change), tmp_path / "run", View())
        assert str(other) in str(caught.value) and not (tmp_path / "run").exists()


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"bases": ()}, "no base"),
    ({"bases": (Path("absent"),)}, "no config.json"),
    ({"value": "absent"}, "no config.json"),
    ({"beta": 0.0}, "--beta"),
    ({"scheme": "cascade", "cache_logits": True}, "--cache-logits"),
    ({"anchor": Path("text.txt")}, "--anchor"),
    ({"regulariser": Regulariser(anchor_weight=1.0)}, "--anchor"),
    ({"data": Data(Path("absent.jsonl"))}, "absent.jsonl"),
    ({"data": Data(Path("rows.jsonl"), held_out_share=1.0)}, "--held-out-share"),
    ({"data": Data(Path("rows.jsonl"), longest=97)}, "--max-length"),
    ({"data": Data(Path("rows.jsonl"), longest=8)}, r"rows.jsonl:1: \d+ tokens, where 8 are the most"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_REQUESTS)
def test_a_bad_request_leaves_no_trace(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], problem: str
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(KinfolkError, match=problem):
        train_value(ask(place, **change), tmp_path / "run", View())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change", [{"epochs": 0.0}, {"learning_rate": -1.0}, {"demonstrations_per_step": 0}, {"seed": -1}, {"patience": -1}]
)
def test_settings_out_of_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(KinfolkError, match=next(iter(change))):
        replace(SETTINGS, **change)
    with pytest.raises(KinfolkError, match="norm_weight"):
        Regulariser(norm_weight=-1.0)


def test_a_folder_with_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(KinfolkError, match="something else already"):
        train_value(ask(place), tmp_path / "run", View())
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["precious"]


def test_a_diverging_training_stops(place: Path, tmp_path: Path) -> None:
    with pytest.raises(KinfolkError, match=r"(loss|norm) (nan|inf) at step") as caught:
        train_value(ask(place, learning_rate=1e5, gradient_clip=1e30, patience=0, epochs=9), tmp_path / "run", View())
    assert "--learning-rate" in str(caught.value)
