import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_family import View, make_model, result_of
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from value_runs import ask, figures

from kinfolk.build.ledger import Ledger
from kinfolk.data.loader import sequence_order
from kinfolk.errors import KinfolkError
from kinfolk.plan.stages import Rate
from kinfolk.train.monitor import read_metrics
from kinfolk.train.rate import learning_rate
from kinfolk.transfer import value as value_module
from kinfolk.transfer.demonstrations import read_demonstrations, split_by_hash
from kinfolk.transfer.head import zero_head
from kinfolk.transfer.objective import Regulariser
from kinfolk.transfer.record import check_fits
from kinfolk.transfer.template import template_of
from kinfolk.transfer.value import train_value
from kinfolk.transfer.value_request import ValueRequest


def plain_loop(place: Path, request: ValueRequest) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Inverse value learning, written down once more with nothing but torch and transformers, a text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(place / "small")
    read = read_demonstrations(place / "rows.jsonl", template_of(tokenizer, ""), tokenizer, 96)
    train, _ = split_by_hash(read, 0.2, "")
    bases = [AutoModelForCausalLM.from_pretrained(folder) for folder in request.bases]
    value = zero_head(AutoModelForCausalLM.from_pretrained(place / "small")).train()
    matrices = [each for _, each in value.named_parameters() if each.dim() > 1]
    vectors = [each for _, each in value.named_parameters() if each.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        foreach=False,
    )
    steps, losses = round(1.5 * len(train) / 6), []
    for step in range(steps):
        items = [train.items[i] for i in sequence_order(6 * step, 6, len(train), 4)]
        total, scored = torch.zeros(()), sum(item.scored for item in items)
        for item in items:
            ids = torch.from_numpy(item.ids.astype("int64"))
            at = torch.from_numpy(item.response[1:]).nonzero()[:, 0]
            for base in bases:
                with torch.no_grad():
                    z = base(ids[None]).logits[0, at]
                d = value(ids[None]).logits[0, at]
                total = total + cross_entropy(z + d, ids[at + 1], reduction="sum") / len(bases)
        (total / scored).backward()
        torch.nn.utils.clip_grad_norm_(value.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(Rate(0.02, 0, steps, "cosine"), step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / scored).item())
    return losses, dict(value.named_parameters())


@pytest.mark.parametrize("bases", [("small",), ("small", "large")])
def test_equals_a_plain_loop(place: Path, tmp_path: Path, bases: tuple[str, ...]) -> None:
    request = ask(place, bases=tuple(place / name for name in bases), patience=0, held_out_every_steps=1)
    train_value(request, tmp_path / "run", View())
    losses, weights = plain_loop(place, request)
    records = [each for each in read_metrics(tmp_path / "run" / "training" / "metrics.jsonl") if "loss" in each]
    assert [each["loss"] for each in records] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    (event,) = Ledger(tmp_path / "run" / "ledger.jsonl").events("finished")
    assert event["best_step"] == len(losses)  # so that the result is the last state
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "value")
    for name, expected in weights.items():
        difference = torch.linalg.norm(found.get_parameter(name) - expected) / torch.linalg.norm(expected)
        assert difference < 1e-3, name


def test_bases_are_untouched(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load(folder: Path) -> Any:
        found = load_member(folder)
        loaded.append((found[0], {name: each.clone() for name, each in found[0].state_dict().items()}))
        return found

    load_member = value_module.load_member
    monkeypatch.setattr(value_module, "load_member", load)
    bases = (place / "small", place / "large")
    train_value(ask(place, bases=bases, watch=place / "large", zero_head=False), tmp_path / "run", View())
    assert len(loaded) == 4  # two bases, the value network, the watched base
    for model, before in (loaded[0], loaded[1], loaded[3]):
        assert not model.training
        for name, each in model.state_dict().items():
            assert each.numpy().tobytes() == before[name].numpy().tobytes(), name
    value, before = loaded[2]
    assert any(not torch.equal(each, before[name]) for name, each in value.state_dict().items())


def test_what_comes_out(place: Path, whole: Path) -> None:
    files = result_of(whole / "value")
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= set(files)
    record = json.loads(files["transfer.json"])
    assert record["scheme"] == "residual" and record["bases"][0]["name"] == "small"
    assert record["seeds"] == {"order": 4, "weights": 5, "anchors": 6}
    assert str(place) not in files["transfer.json"].decode() + files["README.md"].decode()
    tokenizer = AutoTokenizer.from_pretrained(whole / "value")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=0)
    assert prompt == "<|endoftext|>### User:\nhi\n\n### Assistant:\n"
    ledger = Ledger(whole / "ledger.jsonl")
    names = [event["event"] for event in ledger.events()]
    assert names == ["started", "training_started", "finished"]
    (finished,) = ledger.events("finished")
    matrices = sum(each.numel() for each in make_model(16).parameters() if each.dim() > 1)
    assert finished["flops"]["frozen"] == 2 * matrices * finished["tokens"]
    assert (
        finished["flops"]["trained"] == 6 * matrices * finished["tokens"]
    )  # the untied head takes the tied one's place
    (scored,) = finished["held_out"]
    assert scored["pair_loss"] == pytest.approx(finished["held_out_loss"], rel=1e-6)
    assert scored["pair_loss"] < scored["base_loss"] - 0.5
    assert scored["base_loss"] == pytest.approx(finished["held_out_before"], rel=1e-6)
    records = read_metrics(whole / "training" / "metrics.jsonl")
    steps = finished["steps"]
    assert [each["step"] for each in records if "held_out_loss" in each] == [
        *range(0, steps, 3),
        *[steps] * (steps % 3 > 0),
    ]
    assert list((whole / "training" / "tensorboard").iterdir())
    view = View()
    before = (whole / "ledger.jsonl").read_bytes()
    assert train_value(ask(place), whole, view) == finished  # there is nothing to do
    assert view.steps == 0 and (whole / "ledger.jsonl").read_bytes() == before


def test_the_watched_base_decides(place: Path, whole: Path, tmp_path: Path) -> None:
    result = train_value(ask(place, watch=place / "large"), tmp_path / "run", View())
    losses = [each for each in read_metrics(tmp_path / "run" / "training" / "metrics.jsonl") if "held_out_loss" in each]
    by_name = {each["base"]: each for each in result["held_out"]}
    assert not by_name["large"]["trained_on"] and by_name["small"]["trained_on"]
    assert losses[0]["held_out_loss"] == pytest.approx(by_name["large"]["base_loss"], rel=1e-6)
    assert result["held_out_loss"] == pytest.approx(by_name["large"]["pair_loss"], rel=1e-6)
    own = [each["loss"] for each in figures(whole) if "loss" in each]
    assert [each["loss"] for each in figures(tmp_path / "run") if "loss" in each] == own  # it is not trained on


def test_cached_logits_train_alike(place: Path, whole: Path, tmp_path: Path) -> None:
    view = View()
    request = ask(place, cache_logits=True)
    result = train_value(request, tmp_path / "run", view)
    losses = {
        name: [each["loss"] for each in figures(run) if "loss" in each]
        for name, run in {"cached": tmp_path / "run", "recomputed": whole}.items()
    }
    assert losses["cached"] == pytest.approx(losses["recomputed"], rel=1e-3)
    assert losses["cached"] != losses["recomputed"]
    (event,) = Ledger(tmp_path / "run" / "ledger.jsonl").events("logits_cached")
    (stated,) = [line for line in view.said if "base logits" in line]
    assert f"cached, {event['bytes'] / 1e6:,.1f} MB of disk" in stated and "(or recomputed" in stated
    assert not (tmp_path / "run" / "cache").exists()
    (once,) = Ledger(whole / "ledger.jsonl").events("finished")
    assert result["flops"]["frozen"] < once["flops"]["frozen"]


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "cascade"},
        {"scheme": "cascade_without_text", "regulariser": Regulariser("masked", 1.0)},
        {"value": "scratch", "zero_head": False},
        {"value": "scratch:large", "regulariser": Regulariser("released", 1.0)},
        {"regulariser": Regulariser("kl", 0.5, entropy_weight=0.01), "beta": 2.0},
        {"regulariser": Regulariser(anchor_weight=1.0), "anchor": "text.txt"},
        {"regulariser": Regulariser(anchor_weight=1.0), "anchor": "text.txt", "cache_logits": True},
    ],
)
def test_every_way_learns(place: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    change = dict(change)
    if "anchor" in change:
        change["anchor"] = place / change["anchor"]
    if change.get("value") == "scratch:large":
        change["value"] = f"scratch:{place / 'large'}"
    result = train_value(ask(place, epochs=1, **change), tmp_path / "run", View())
    (scored,) = result["held_out"]
    assert scored["pair_loss"] < scored["base_loss"] - 0.2
    records = [each for each in figures(tmp_path / "run") if "loss" in each]
    has_terms = change.get("regulariser", Regulariser()) != Regulariser()
    # At step 1 a zeroed head changes nothing yet, so that nothing but the entropy is to be paid for.
    assert (records[-1]["regulariser"] != 0) == has_terms
    value = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "value")
    assert value.config.hidden_size == (24 if "large" in str(change.get("value")) else 16)
    if "anchor" in change:
        assert result["anchor_tokens"] > 0


def test_using_it_where_it_does_not_fit(place: Path, whole: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "large")
    record = check_fits(whole / "value", place / "large", tokenizer)
    assert record is not None and record["alpha"] == 1.0
    tokenizer.add_tokens(["more"])
    with pytest.raises(KinfolkError, match=r"made for another tokenizer than that of .*large"):
        check_fits(whole / "value", place / "large", tokenizer)
    assert check_fits(place / "small", place / "large", tokenizer) is None
