"""kinfolk chat, as a user calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import model
from transformers import PreTrainedModel
from typer.testing import CliRunner
from vocabularies import tokenizer

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.transfer import Pair, save_pair
from kinfolk.transfer.chat import Sampling, answer, prompt_ids
from kinfolk.transfer.sources import tokenizer_hash

GREEDY = ("--temperature", "0", "--max-new-tokens", "6")


def a_model(seed: int) -> PreTrainedModel:
    return model("llama", seed, vocab_size=290, max_position_embeddings=128)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("chat")
    base, value = a_model(1), a_model(2)
    for name, one in (("base", base), ("value", value)):
        one.save_pretrained(root / name)
        tokenizer("small").save_pretrained(root / name)
    save_pair(Pair.of(base, value), tokenizer("small"), root / "pair")
    model("llama", 3, vocab_size=330).save_pretrained(root / "other")
    tokenizer("large").save_pretrained(root / "other")
    return {path.name: path for path in root.iterdir()}


def chat(*arguments: object, typed: str | None = None) -> Any:
    return CliRunner().invoke(app, ["chat", *map(str, arguments)], input=typed)


def expected(models: list[PreTrainedModel], alpha: float = 1.0) -> str:
    """Greedy, without a cache, of the default template's text."""
    ids = tokenizer("small")("<|endoftext|>### User:\nThe mill?\n\n### Assistant:\n")["input_ids"]
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            first, *rest = (one(torch.tensor([ids])).logits[0, -1] for one in models)
        ids.append(int((first + alpha * sum(rest)).argmax()))
    return str(tokenizer("small").decode(ids[start:], skip_special_tokens=True))


def test_one_answer_of_a_model_and_of_pairs(folders: dict[str, Path]) -> None:
    base, value = a_model(1), a_model(2)
    asked = ("--prompt", "The mill?", *GREEDY, "--json")
    for arguments, wanted in (
        ((folders["base"],), expected([base])),
        ((folders["base"], "--value", folders["value"]), expected([base, value])),
        ((folders["base"], "--value", folders["value"], "--alpha", 0.3), expected([base, value], 0.3)),
        ((folders["pair"],), expected([base, value])),
        ((folders["pair"], "--alpha", 0), expected([base])),
    ):
        result = chat(*arguments, *asked)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["text"] == wanted and found["tokens"] == 6 and found["finish"] == "length"
        assert found["tokens_per_second"] > 0
    assert expected([base]) != expected([base, value])


def test_the_answer_is_streamed(folders: dict[str, Path]) -> None:
    result = chat(folders["base"], "--prompt", "The mill?", *GREEDY)
    assert result.stdout.strip() == expected([a_model(1)]).strip()


def test_a_conversation_goes_on_with_what_was_said(folders: dict[str, Path]) -> None:
    result = chat(folders["base"], *GREEDY, typed="The mill?\nAnd the river?\n\nnot asked\n")
    assert result.exit_code == 0, result.output
    first = expected([a_model(1)])
    messages = [
        {"role": "user", "content": "The mill?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And the river?"},
    ]
    second = answer(a_model(1), tokenizer("small"), messages, Sampling(6, 0))
    assert result.stdout.replace("\n", "") == (first + second.text).replace("\n", "")


def test_how_the_value_network_was_trained_is_kept(folders: dict[str, Path]) -> None:
    record = folders["value"] / "transfer.json"
    trained = {"kind": "value", "bases": [{"name": "base"}], "scheme": "residual", "alpha": 0.5}
    made_for = {"sha256": tokenizer_hash(tokenizer("small")), "entries": 1}
    record.write_text(json.dumps({**trained, "tokenizer": made_for}))
    try:
        asked = (folders["base"], "--value", folders["value"], "--prompt", "The mill?", *GREEDY, "--json")
        assert json.loads(chat(*asked).stdout)["text"] == expected([a_model(1), a_model(2)], 0.5)
        record.write_text(json.dumps({**trained, "tokenizer": {**made_for, "sha256": "another"}}))
        assert "made for another tokenizer" in str(chat(*asked).exception)
        record.write_text(json.dumps({**trained, "kind": "tuned", "tokenizer": made_for}))
        assert "no value network" in str(chat(*asked).exception)
        record.write_text("{}")
        assert "record of a result" in str(chat(*asked).exception)
    finally:
        record.unlink()


def test_a_template_of_the_tokenizer_and_the_default_one() -> None:
    own = tokenizer("small")
    asked = [{"role": "user", "content": "the"}]
    assert own.decode(prompt_ids(own, asked)) == "<|endoftext|>### User:\nthe\n\n### Assistant:\n"
    own.chat_template = "{{ messages[0]['content'] }}!"
    try:
        assert own.decode(prompt_ids(own, asked)) == "the!"
        own.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(KinfolkError, match="cannot render"):
            prompt_ids(own, asked)
    finally:
        own.chat_template = None


def test_sampling_is_a_function_of_the_seed(folders: dict[str, Path]) -> None:
    asked = (folders["base"], "--prompt", "The mill?", "--max-new-tokens", 12, "--json", "--seed")
    texts = [json.loads(chat(*asked, seed).stdout)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "--json"), "one answer"),
        (("base", "--alpha", "0.5", "--prompt", "x"), "no value network"),
        (("base", "--value", "other", "--prompt", "x"), "another vocabulary"),
        (("pair", "--value", "value", "--prompt", "x"), "not a decoder of its own"),
        (("base", "--prompt", "x", "--temperature", "-1"), "temperature"),
        (("base", "--prompt", "x", "--top-p", "0"), "top_p"),
        (("base", "--prompt", "x", "--max-new-tokens", "0"), "max_new_tokens"),
        (("base", "--prompt", "raven " * 200), "context"),
        (("/missing", "--prompt", "x"), "no such folder"),
    ],
)
def test_what_cannot_be_asked(folders: dict[str, Path], arguments: tuple[str, ...], message: str) -> None:
    result = chat(*(folders.get(argument, argument) for argument in arguments))
    assert isinstance(result.exception, KinfolkError) and message in str(result.exception)
