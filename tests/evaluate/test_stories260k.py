"""A model that others trained, and figures that others measured (shared/data/README.md, section 7)."""

import json
import math
import warnings

import pytest
import stories260k
import torch
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.evaluate.loss import encode_documents, score
from kinfolk.evaluate.samples import sample_text

BOS = 1
GREEDY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
# fmt: off
FIRST_IDS = [
    403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410,
    408, 419, 292, 411, 322, 265, 282, 295, 433, 426,
]
# fmt: on

pytestmark = pytest.mark.skipif(not stories260k.MODEL.is_file(), reason="shared/data/stories260K is not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories260K")
    stories260k.load_model().save_pretrained(folder)
    stories260k.load_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    """The model through its whole way: llama2.c file, Hugging Face folder, load_checkpoint."""
    return load_checkpoint(folder, "cpu")


def test_tokens_and_loss_of_two_sentences(checkpoint):
    model, tokenizer = checkpoint
    [document] = encode_documents(tokenizer, [GREEDY[: GREEDY.index(" One day")]])
    assert document[0].tolist() == FIRST_IDS
    result = score(model, [document], BOS, 512, "cpu")
    assert result.loss * result.tokens == pytest.approx(5.5910, abs=5e-4)


def test_first_sixty_stories(checkpoint):
    model, tokenizer = checkpoint
    documents = list(encode_documents(tokenizer, stories260k.stories()[:60]))
    assert max(len(ids) for ids, _ in documents) <= 511
    result = score(model, documents, BOS, 512, "cpu")
    assert (result.documents, result.tokens, result.bytes) == (60, 14_905, 31_699)
    assert result.loss == pytest.approx(1.3174, abs=5e-4)
    assert result.bits_per_byte == pytest.approx(0.8936, abs=5e-4)
    assert result.bits_per_byte_low < 0.8936 < result.bits_per_byte_high


def test_whole_file_as_one_document_by_command(folder, monkeypatch):
    arguments = ["evaluate", str(folder), "--text", str(stories260k.TEXT), "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.exception
    result = json.loads(first.stdout)
    assert (result["stride"], result["tokens"], result["bytes"]) == (256, 100_707, 197_290)
    assert result["loss"] == pytest.approx(1.8457, abs=5e-4)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(1.3592, abs=5e-4)
    monkeypatch.setattr("kinfolk.evaluate.measure.load", None)  # nothing is loaded a second time
    again = CliRunner().invoke(app, arguments)
    assert again.stdout == first.stdout
    assert "1 of 1 known from before" in again.stderr
    other = CliRunner().invoke(app, [*arguments, "--stride", "512"])
    assert isinstance(other.exception, TypeError), "another stride is another result"


def test_greedy_text(checkpoint):
    model, tokenizer = checkpoint
    start = torch.tensor([[BOS]])
    output = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=80, pad_token_id=2
    )
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith(GREEDY)


def test_samples(checkpoint, capfd):
    model, tokenizer = checkpoint
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (
            sample_text(model, tokenizer, ["", "Once upon a time", "Once upon a time"], 20, seed, "cpu")
            for seed in (0, 0, 5)
        )
    assert first == again != other
    assert [sorted(sample) for sample in first] == [["continuation", "prompt"]] * 3
    assert first[1]["continuation"] != first[2]["continuation"], "a prompt given twice is continued in two ways"
    assert first[1]["continuation"].startswith((",", " ")) and first[0]["continuation"][0].isupper()
    assert torch.equal(state, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", ""), "transformers has nothing to warn about"
    json.dumps(first)


def test_samples_end_where_the_context_does(checkpoint):
    model, tokenizer = checkpoint
    prompt = tokenizer.decode(tokenizer("a" * 600, add_special_tokens=False)["input_ids"][:500])
    [sample] = sample_text(model, tokenizer, [prompt], 100, 0, "cpu")
    assert 1 <= len(tokenizer(sample["continuation"])["input_ids"]) <= 13
    with pytest.raises(KinfolkError, match="fills the model's context of 512"):
        sample_text(model, tokenizer, [prompt * 2], 100, 0, "cpu")
    with pytest.raises(KinfolkError, match="max_new_tokens is 0"):
        sample_text(model, tokenizer, [prompt], 0, 0, "cpu")


def test_samples_of_a_diverged_model(checkpoint, tiny):
    _, tokenizer = checkpoint
    model = tiny(vocab=512)
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(KinfolkError, match="not numbers"):
        sample_text(model, tokenizer, ["Once"], 5, 0, "cpu")
