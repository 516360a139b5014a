"""Two random members with one tokenizer, and demonstrations: what value networks are trained on in tests."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from micro import RecordingView
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kinfolk.data.tokenizer import train_tokenizer

VOCABULARY = 300
CONTEXT = 96


class View(RecordingView):
    """Also watches preparations."""

    def counted(self, what: str, done: int, total: int | None) -> None: ...


def sentences(count: int = 200) -> list[str]:
    draw = random.Random(3)
    nouns, verbs = ["raven", "mill", "river", "façade", "学校"], ["sees", "mends", "follows"]
    return [f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}." for _ in range(count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(iter(["\n".join([*sentences(), "### User:\n\n### Assistant:\n"])]), VOCABULARY)


def make_model(hidden: int = 16, seed: int = 0, vocabulary: int = VOCABULARY, **settings: Any) -> LlamaForCausalLM:
    fields = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(fields | settings))).eval()


def write_member(folder: Path, hidden: int, seed: int, tokenizer: PreTrainedTokenizerFast) -> Path:
    make_model(hidden, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int = 40) -> list[dict[str, str]]:
    """Repeat a word of the prompt: something that can be learned."""
    draw = random.Random(5)
    words = ["raven", "mill", "river", "school", "cobbler"]
    return [
        {"prompt": f"Say {word} {number}", "response": f"{word}, {word}."}
        for number, word in enumerate(draw.choices(words, k=count))
    ]


def write_rows(path: Path, content: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
    return path


def result_of(folder: Path) -> dict[str, bytes]:
    """The files of a result."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
