"""Two models as one by the mean of their probabilities, and what a token costs."""

import json
import math

import numpy as np
import pytest
from tiny_checkpoints import byte_tokenizer, save, tiny_llama, write_texts
from transformers import Qwen3Config
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.ensembles import best_at_equal_flops, flops_per_token, mean_probability
from kinfolk.evaluate.loss import DocumentLosses, document_losses, encode_documents, summary
from kinfolk.family.shapes import Shape
from kinfolk.plan.costs import matmul_flops_per_token


def losses(*nats, stride=4):
    values = {place: np.array(part) for place, part in enumerate(nats)}
    return DocumentLosses(values, dict.fromkeys(values, 10), stride, 8)


def test_the_mean_of_probabilities():
    first, second = (
        losses([-math.log(0.5), 800.0], [-math.log(0.1)]),
        losses([-math.log(0.25), 900.0], [-math.log(0.9)]),
    )
    found = mean_probability(first, second)
    np.testing.assert_allclose(found.nats[0], [-math.log(0.375), 800 + math.log(2)])
    np.testing.assert_allclose(found.nats[1], [-math.log(0.5)])
    np.testing.assert_allclose(mean_probability(first, first).nats[0], first.nats[0])
    for other in (losses([1.0], [1.0]), losses([1.0, 2.0]), losses([1.0, 1.0], [1.0], stride=3)):
        with pytest.raises(KinfolkError, match="the same tokens"):
            mean_probability(first, other)


def test_flops_are_those_of_the_plan():
    shape = Shape(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    config = Qwen3Config(**shape.model_dump(), vocab_size=1000, max_position_embeddings=64)
    # transformers 5.17 makes the angles of the rotary embedding by a product too, of 16 FLOPs a token here.
    assert flops_per_token(config, 48) - matmul_flops_per_token(shape, 1000, 48) / 3 in (0, 16)


def test_the_best_that_can_be_afforded():
    def pair(models, cost, bits):
        return {"models": models, "flops_per_token": cost, "bits_per_byte": bits}

    candidates = [
        pair(["a", "b"], 3.0, 1.0),
        pair(["a", "d"], 3.0, 0.1),
        pair(["a", "c"], 4.0, 0.9),
        pair(["b", "c"], 5.0, 0.5),
    ]
    assert best_at_equal_flops("d", 4.0, candidates) == candidates[2]
    assert best_at_equal_flops("d", 2.9, candidates) is None


def test_the_command(tmp_path):
    texts = write_texts(tmp_path / "texts", 2)
    for seed, hidden, name in ((0, 16, "a"), (1, 16, "b"), (2, 64, "large")):
        save(tmp_path / name, tiny_llama(seed, hidden))
    save(tmp_path / "other", tiny_llama(3, vocab=261), merges=4)
    models = [str(tmp_path / name) for name in ("a", "b", "large", "other")]
    options = [part for path in texts for part in ("--text", str(path))]
    result = CliRunner().invoke(app, ["evaluate", *models, *options, "--ensembles", "--json"])
    assert result.exit_code == 0, result.exception
    a, b, large, other = json.loads(result.stdout)
    assert a["two_smaller"] is None and b["two_smaller"] is None and other["two_smaller"] is None
    assert large["two_smaller"]["models"] == models[:2]
    assert large["two_smaller"]["flops_per_token"] == a["flops_per_token"] + b["flops_per_token"]
    documents = list(encode_documents(byte_tokenizer(), [path.read_text("utf-8") for path in texts]))
    both = [document_losses(tiny_llama(seed), documents, 0, 64, "cpu") for seed in (0, 1)]
    assert large["two_smaller"]["bits_per_byte"] == summary(mean_probability(*both)).bits_per_byte
    assert large["two_smaller"]["loss"] <= (a["loss"] + b["loss"]) / 2, "by Jensen's inequality"
    table = CliRunner().invoke(app, ["evaluate", *models, *options, "--ensembles"])
    assert "(a + b," in table.stdout and "4 of 4 known from before" in table.stderr
