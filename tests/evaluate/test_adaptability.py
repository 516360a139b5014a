"""Noise and tuning: what is changed, by how much, and that the same trial gives the same figures."""

import copy
import json

import numpy as np
import pytest
import torch
from micro import RecordingView
from micro import family as micro
from tiny_checkpoints import byte_tokenizer, save, tiny_llama, write_texts
from typer.testing import CliRunner

from kinfolk.build.build import build
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate import adaptability as module
from kinfolk.evaluate.adaptability import Trial, adaptability, fine_tuned, noisy, split
from kinfolk.evaluate.decay import before_decay
from kinfolk.evaluate.loss import encode_documents, score
from kinfolk.evaluate.measure import Loaded

TRIAL = Trial(noise=0.5, draws=2, steps=6, rows=4, learning_rate=3e-3)


def loaded(seed=0, **shape):
    return Loaded("model", tiny_llama(seed, **shape), byte_tokenizer(), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    paths = write_texts(tmp_path_factory.mktemp("texts"), 5)
    return list(encode_documents(byte_tokenizer(), [path.read_text("utf-8") for path in paths]))


@pytest.mark.parametrize("tied", [False, True])
def test_noise_has_the_deviation_of_the_initialisation(tied):
    model = tiny_llama(0, hidden=64, tied=tied)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(7)  # training moves weights, and noise is not measured by them
    changed = noisy(model, 0.5, seed=3)
    assert (changed.lm_head.weight is changed.model.embed_tokens.weight) == tied
    before = dict(model.named_parameters())
    for name, parameter in changed.named_parameters():
        difference = (parameter - before[name]).detach()
        if "norm" in name:
            assert not difference.any(), "what begins as a constant gets no noise"
        else:
            assert float(difference.std()) == pytest.approx(0.5 * 0.2, rel=0.1), name
    again, other = noisy(model, 0.5, seed=3), noisy(model, 0.5, seed=4)
    assert torch.equal(again.lm_head.weight, changed.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, changed.lm_head.weight)
    layers = [changed.model.layers[at].mlp.up_proj.weight - model.model.layers[at].mlp.up_proj.weight for at in (0, 1)]
    assert not torch.allclose(*layers), "every tensor has noise of its own"


def test_tuning_equals_updates_by_hand(monkeypatch):
    model = tiny_llama(0)
    sequences = np.random.default_rng(0).integers(0, 257, (3, 9))
    trial = Trial(steps=2, rows=2, learning_rate=1e-2)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 1)  # a row at a time
    tuned = fine_tuned(model, sequences, trial, "cpu")
    generator = np.random.default_rng(trial.seed)
    order = [*generator.permutation(3), *generator.permutation(3)][:4]
    expected = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0)
    for rows in (order[:2], order[2:]):
        batch = torch.from_numpy(sequences[rows])
        optimizer.zero_grad()
        logits = expected(batch[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-3, atol=1e-4)
    assert torch.equal(model.lm_head.weight, tiny_llama(0).lm_head.weight), "the model itself is left as it was"


def test_a_trial(documents):
    tuning = [(np.tile(np.arange(1, 9), 40), 320)]  # easily learnt
    first, again = (adaptability(loaded(), documents, tuning, 32, None, TRIAL) for _ in range(2))
    assert first == again
    assert first["loss"] == score(tiny_llama(0), documents, 0, 32, "cpu").loss
    by_hand = [score(noisy(tiny_llama(0), 0.5, seed), documents, 0, 32, "cpu").loss for seed in (0, 1)]
    assert first["noise"]["loss"] == pytest.approx(np.mean(by_hand))
    assert (first["noise"]["lowest"], first["noise"]["highest"]) == (min(by_hand), max(by_hand))
    assert first["noise"]["increase"] == pytest.approx(np.mean(by_hand) - first["loss"])
    assert first["tuning"]["gain"] > 0.05
    assert first["tuning"]["increase"] == first["tuning"]["loss"] - first["loss"] != 0
    nothing = adaptability(loaded(), documents, None, 32, None, Trial(noise=0.0))
    assert nothing["noise"]["increase"] == pytest.approx(0, abs=1e-12)
    assert nothing["tuning"] is None
    json.dumps(first, allow_nan=False)


def test_a_text_to_tune_on_is_split_in_two():
    parts = [(np.arange(1, 31), 30), (np.arange(31, 61), 60)]
    sequences, held_out = split(parts, 0, 9)
    assert sequences.shape == (5, 10)
    read = [0, *range(1, 31), 0, *range(31, 49)]
    assert sequences.flatten().tolist() == read[:50]
    assert [ids.tolist() for ids, _ in held_out] == [list(range(49, 61))]
    with pytest.raises(KinfolkError, match="60 tokens to tune on"):
        split(parts, 0, 12)


@pytest.mark.parametrize(("strategy", "expected"), [("trunk", ("small-undecayed", 9)), ("progressive", None)])
def test_members_before_their_decay(tmp_path, strategy, expected):
    member = micro(tmp_path).family.members[0].model_dump(mode="json", exclude_none=True)
    recipe = {"schedule": {"warmup_share": 0.1, "decay_share": 0.25}, "checkpoints": {"steps": 4}}
    build(micro(tmp_path, f"strategy={strategy}", members=[member], recipe=recipe), tmp_path / "run", RecordingView())
    found = before_decay(tmp_path / "run", "small")
    assert (found and (found.parent.parent.name, int(found.name.removeprefix("step-")))) == expected
    result = CliRunner().invoke(app, ["adaptability", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.exception
    records = json.loads(result.stdout)
    assert [record["before_decay"] for record in records] == ([False, True] if expected else [False])
    metrics = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    finished = next(event for event in map(json.loads, metrics) if event["event"] == "member_finished")
    assert records[0]["loss"] == pytest.approx(finished["held_out"]["loss"], rel=1e-6)
    if expected:
        assert records[1]["loss"] != records[0]["loss"]
        table = CliRunner().invoke(app, ["adaptability", str(tmp_path / "run")]).stdout
        assert "before its decay" in table


def test_the_command_on_a_checkpoint(tmp_path):
    texts = write_texts(tmp_path / "texts", 2, sentences=12)
    model = save(tmp_path / "model", tiny_llama(0))
    options = ["--text", str(texts[0]), "--tune", str(texts[1]), "--steps", "2", "--context-length", "16"]
    result = CliRunner().invoke(app, ["adaptability", model, *options, "--json"])
    assert result.exit_code == 0, result.exception
    [record] = json.loads(result.stdout)
    assert record["trial"]["steps"] == 2 and record["tuning"]["gain"] > 0
    table = CliRunner().invoke(app, ["adaptability", model, *options]).stdout
    assert f"{record['tuning']['loss']:.4f}" in table
