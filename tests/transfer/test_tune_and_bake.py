import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import exit_code, start_child
from tiny_family import View, make_model, make_tokenizer, result_of, rows, write_member, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from kinfolk.cli.app import app, main
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Checkpoints
from kinfolk.train.monitor import read_metrics
from kinfolk.transfer.bake import BakeRequest, bake_pair
from kinfolk.transfer.head import zero_head
from kinfolk.transfer.proxy import proxy_tuned
from kinfolk.transfer.record import check_fits
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import Data
from kinfolk.transfer.tune import TuneRequest, tune_member
from kinfolk.transfer.value import train_value
from kinfolk.transfer.value_request import ValueRequest

SETTINGS = Settings(
    epochs=1,
    demonstrations_per_step=8,
    learning_rate=0.01,
    held_out_every_steps=2,
    precision="float32",
    checkpoints=Checkpoints(steps=2),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a member, a value network of random weights and one that changes nothing, and demonstrations."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = make_tokenizer()
    write_member(folder / "member", 24, 2, tokenizer)
    write_member(folder / "value", 16, 1, tokenizer)
    zero_head(make_model(16, 1)).save_pretrained(folder / "zero")
    tokenizer.save_pretrained(folder / "zero")
    write_rows(folder / "rows.jsonl", rows())
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A value network that has learned something."""
    settings = replace(SETTINGS, epochs=4, learning_rate=0.02)
    request = ValueRequest((place / "member",), str(place / "value"), data(place), settings, zero_head=True)
    train_value(request, place / "trained", View())
    return place / "trained" / "value"


def data(place: Path) -> Data:
    return Data(place / "rows.jsonl", held_out_share=0.2)


def test_tuning_learns_and_goes_on_after_a_signal(place: Path, tmp_path: Path) -> None:
    request = TuneRequest(place / "member", data(place), SETTINGS)
    result = tune_member(request, tmp_path / "whole", View())
    assert result["tuned_loss"] < result["base_loss"] - 0.5
    assert result["flops"]["frozen"] == 0
    records = read_metrics(tmp_path / "whole" / "training" / "metrics.jsonl")
    assert records[0] == {"step": 0, "held_out_loss": pytest.approx(result["base_loss"], rel=1e-6)}

    def stop(count: int) -> None:
        if count == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    child = start_child(lambda: tune_member(request, tmp_path / "parted", View(stop)), tmp_path / "log")
    assert exit_code(child) == 128 + signal.SIGTERM
    tune_member(request, tmp_path / "parted", View())
    assert result_of(tmp_path / "parted" / "tuned") == result_of(tmp_path / "whole" / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole" / "tuned")
    with pytest.raises(KinfolkError, match="a tuned model, no value network"):
        check_fits(tmp_path / "whole" / "tuned", place / "member", tokenizer)


def test_baking_comes_close_to_the_pair(place: Path, trained: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=6, patience=0, held_out_every_steps=8)
    request = BakeRequest(place / "member", trained, data(place), settings)
    result = bake_pair(request, tmp_path / "run", View())
    assert result["held_out_before"] > 4 * result["kl"] > 0  # mu = 1: the loss is the KL to the pair
    assert result["held_out_loss"] == pytest.approx(result["kl"], rel=1e-5)
    assert abs(result["baked_loss"] - result["pair_loss"]) < 0.6 * abs(result["base_loss"] - result["pair_loss"])
    card = (tmp_path / "run" / "baked" / "README.md").read_text("utf-8")
    assert f"{result['pair_loss']:.4f} | {result['baked_loss']:.4f} | {result['kl']:.4f}" in card
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "baked")
    assert baked.config.model_type == "llama" and baked.config.hidden_size == 24


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"value": "zero"}])
def test_where_nothing_changes_baking_gives_the_base(place: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    request = BakeRequest(
        place / "member", place / change.get("value", "value"), data(place), replace(SETTINGS, patience=2)
    )
    request = replace(request, alpha=change.get("alpha"))
    result = bake_pair(request, tmp_path / "run", View())
    assert result["held_out_before"] == pytest.approx(0, abs=1e-6) and result["kl"] == pytest.approx(0, abs=1e-6)
    baked, member = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run" / "baked", place / "member")
    )
    ids = torch.arange(30)[None]
    assert torch.allclose(baked(ids).logits, member(ids).logits, atol=1e-3)


def test_the_demonstrations_own_loss_in_baking(place: Path, tmp_path: Path) -> None:
    """mu = 0 is fine-tuning of the member."""
    baked = bake_pair(
        BakeRequest(place / "member", place / "value", data(place), SETTINGS, share=0.0), tmp_path / "a", View()
    )
    tuned = tune_member(TuneRequest(place / "member", data(place), SETTINGS), tmp_path / "b", View())
    assert baked["baked_loss"] == pytest.approx(tuned["tuned_loss"], rel=1e-6)
    with pytest.raises(KinfolkError, match=r"--mu"):
        bake_pair(
            BakeRequest(place / "member", place / "value", data(place), SETTINGS, share=1.5), tmp_path / "c", View()
        )


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_proxy_tuning_is_its_formula(strength: float) -> None:
    large, tuned, small = make_model(24, 1, num_hidden_layers=2), make_model(16, 2), make_model(16, 3)
    proxy = proxy_tuned(large, tuned, small, strength)
    ids = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = large(ids).logits + strength * (tuned(ids).logits - small(ids).logits)
        assert torch.allclose(proxy(ids).logits, wanted, atol=1e-5)
        if strength == 1.0:  # emulated fine-tuning
            emulated = sum(
                sign * model(ids).logits.log_softmax(-1) for sign, model in ((1, large), (1, tuned), (-1, small))
            )
            assert torch.allclose(proxy(ids).logits.softmax(-1), emulated.softmax(-1), atol=1e-6)


def test_a_proxy_decodes_with_a_cache_as_without() -> None:
    large, tuned, small = make_model(24, 1, num_hidden_layers=2), make_model(16, 2), make_model(16, 3)
    proxy = proxy_tuned(large, tuned, small)
    ids = torch.randint(1, 300, (1, 7), generator=torch.Generator().manual_seed(1))
    alone_ = ids.clone()
    with torch.no_grad():
        for _ in range(12):
            logits = large(alone_).logits + tuned(alone_).logits - small(alone_).logits
            alone_ = torch.cat([alone_, logits[:, -1:].argmax(-1)], 1)
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    assert proxy.generate(ids, **settings).tolist() == alone_.tolist()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], 1)
    mask = (torch.arange(10) >= 3).long()[None]
    assert proxy.generate(padded, attention_mask=mask, **settings)[:, 3:].tolist() == alone_.tolist()
    beams = proxy.generate(ids, num_beams=3, **settings)
    without = proxy.generate(ids, num_beams=3, use_cache=False, **settings)
    assert beams.tolist() == without.tolist()


def test_what_proxy_tuning_cannot_do() -> None:
    large, tuned = make_model(24, 1), make_model(16, 2)
    for small in (tuned, make_model(16, 3, num_hidden_layers=2)):
        with pytest.raises(KinfolkError, match="a small model and the same one tuned"):
            proxy_tuned(large, tuned, small)
    with pytest.raises(KinfolkError, match="for decoding only"):
        proxy_tuned(large, tuned, make_model(16, 3)).value.save_pretrained("nowhere")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["transfer", *map(str, arguments)])


FAST = ("--epochs", 1, "--batch", 8, "--learning-rate", 0.01, "--precision", "float32", "--held-out-share", 0.2)


def test_the_commands_from_training_to_baking(place: Path, tmp_path: Path) -> None:
    member, rows_ = place / "member", ("--data", place / "rows.jsonl")
    first = (
        "train",
        "--base",
        member,
        "--value",
        place / "value",
        "--zero-head",
        *rows_,
        *FAST,
        "--run",
        tmp_path / "v",
    )
    table = run(*first)
    assert table.exit_code == 0, table.output
    assert "with the value network" in table.stdout and str(tmp_path / "v" / "value") in table.stdout.replace("\n", "")
    again = run(*first, "--json")
    found = json.loads(again.stdout)
    assert found["event"] == "finished" and found["path"] == "value"
    baked = run("bake", "--base", member, "--value", tmp_path / "v" / "value", *rows_, *FAST, "--run", tmp_path / "b")
    assert baked.exit_code == 0 and "KL(pair||baked)" in baked.stdout
    record = json.loads((tmp_path / "b" / "baked" / "transfer.json").read_text())
    assert record["kind"] == "baked" and record["chat_template"]["source"] == "the base's own"
    tuned = run("tune", member, *rows_, *FAST, "--run", tmp_path / "t", "--json")
    assert json.loads(tuned.stdout)["tuned_loss"] < json.loads(tuned.stdout)["base_loss"]


BAD_COMMANDS: list[tuple[tuple[str, ...], str]] = [
    (("--data", "broken.jsonl"), "broken.jsonl:2: broken JSON"),
    (("--data", "absent.jsonl"), "absent.jsonl: the file cannot be read"),
    (("--data", "rows.jsonl", "--base", "nowhere"), "nowhere"),
    (("--data", "rows.jsonl", "--norm-weight", "-1"), "norm_weight"),
    (("--data", "rows.jsonl", "--max-length", "9"), "rows.jsonl:1: "),
    (("--data", "rows.jsonl", "--template", "rows.jsonl"), "with rows.jsonl"),
    (("--data", "rows.jsonl", "--learning-rate", "0"), "learning_rate"),
]


@pytest.mark.parametrize(("options", "problem"), BAD_COMMANDS)
def test_bad_input_is_told_in_one_sentence(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(place)
    (place / "broken.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n')
    command = ("kinfolk", "transfer", "train", "--base", "member", "--value", "value", "--run", str(tmp_path / "run"))
    monkeypatch.setattr("sys.argv", [*command, *options])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and problem in printed and "fix:" in printed and "Traceback" not in printed
    assert not (tmp_path / "run").exists()
