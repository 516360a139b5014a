"""A server as `kinfolk serve` makes it, in a thread of the test's process, and clients of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import openai
import torch
from pairs import model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from vocabularies import tokenizer

from kinfolk.serve.app import create_app
from kinfolk.serve.limits import Limits
from kinfolk.serve.served import Served, served
from kinfolk.serve.server import Address, door, listen, server_of, url_of

NAME = "tiny"
CONTEXT = 256
MESSAGES: Any = [{"role": "user", "content": "The mill?"}]
PROMPT = "The raven sat"


def a_model(seed: int = 1, **settings: Any) -> PreTrainedModel:
    """Random, of the tokenizer's size; never ends by itself unless it is told how."""
    return model("llama", seed, **{"vocab_size": 290, "max_position_embeddings": CONTEXT, **settings})


def ready(made: PreTrainedModel | None = None, words: PreTrainedTokenizerBase | None = None, **settings: Any) -> Served:
    made = a_model() if made is None else made
    return served(made, words or tokenizer("small"), NAME, **settings)


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    app: Any

    def client(self, key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)


@contextmanager
def running(what: Served, limits: Limits | None = None, key: str | None = None) -> Iterator[Running]:
    address = Address("127.0.0.1", 0)
    listening = listen(address)
    app = create_app(what, door(address, key), limits or Limits())
    server = server_of(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        yield Running(url_of(listening), app)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def greedy(made: PreTrainedModel, ids: list[int], tokens: int) -> list[int]:
    """transformers' own greedy continuation."""
    given = torch.tensor([ids])
    untyped: Any = made
    output = untyped.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in output[0, len(ids) :]]


@cache
def chat_ids() -> tuple[int, ...]:
    """MESSAGES by the default template, which the tokenizer lacks one for."""
    return tuple(tokenizer("small")("<|endoftext|>### User:\nThe mill?\n\n### Assistant:\n")["input_ids"])


def text_of(ids: list[int]) -> str:
    return str(tokenizer("small").decode(ids, skip_special_tokens=True))
