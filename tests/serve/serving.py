"""A server as `kinfolk serve` makes it, in a thread of the test's process, and clients of it."""

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

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
CONTEXT = 128
MESSAGES: Any = [{"role": "user", "content": "The mill?"}]
PROMPT = "The raven sat"


def a_model(seed: int = 1, **settings: Any) -> PreTrainedModel:
    """Random, of the tokenizer's size; never ends by itself unless it is told how."""
    return model("llama", seed, **{"vocab_size": 290, "max_position_embeddings": CONTEXT, **settings})


def scripted(text: str, prompt: Sequence[int]) -> PreTrainedModel:
    """A model that continues one prompt by a text, and then by spaces."""
    ids = encoded(text)
    made = a_model()

    def say(_: Any, __: Any, output: Any) -> Any:
        step = output.past_key_values.get_seq_length() - len(prompt)
        output.logits[:] = 0
        output.logits[:, -1, ids[step] if step < len(ids) else encoded(" ")[0]] = 50
        return output

    made.register_forward_hook(say)
    return made


def blocked(made: PreTrainedModel) -> threading.Semaphore:
    """Have every forward pass of a model wait for a release."""
    passes = threading.Semaphore(0)

    def wait(*_: Any) -> None:
        passes.acquire(timeout=20)

    made.register_forward_pre_hook(wait)
    return passes


def ready(made: PreTrainedModel | None = None, words: PreTrainedTokenizerBase | None = None, **settings: Any) -> Served:
    made = a_model() if made is None else made
    return served(made, words or tokenizer("small"), NAME, **settings)


@dataclass(frozen=True)
class Reply:
    """An answer to a raw request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must be complete."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"} and found["message"]
        return found


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str

    def client(self, key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)

    def send(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> Reply:
        """A request as it is: `body` as JSON unless it is bytes, or chunks of them."""
        raw = json.dumps(body).encode() if isinstance(body, dict | list) else body
        connection = self.connect()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, raw, {"Content-Type": "application/json", **named})
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply

    def chat(self, **fields: Any) -> Reply:
        return self.send("/v1/chat/completions", {"model": NAME, "messages": MESSAGES, "max_tokens": 2, **fields})

    def metric(self, name: str) -> float:
        """One value of /metrics."""
        lines = self.send("/metrics", method="GET").body.decode().splitlines()
        return float(next((line.rsplit(" ", 1)[1] for line in lines if line.startswith(name + " ")), "0"))


@contextmanager
def running(what: Served, limits: Limits | None = None, key: str | None = None) -> Iterator[Running]:
    address = Address("127.0.0.1", 0)
    listening = listen(address)
    server = server_of(create_app(what, door(address, key), limits or Limits()))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        yield Running(url_of(listening))
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def encoded(text: str) -> list[int]:
    return list(tokenizer("small")(text)["input_ids"])


def decoded(ids: Sequence[int]) -> str:
    return str(tokenizer("small").decode(list(ids), skip_special_tokens=True))


def chat_ids() -> list[int]:
    """MESSAGES by the default template: the tokenizer has none of its own."""
    return encoded("<|endoftext|>### User:\nThe mill?\n\n### Assistant:\n")


def greedy(made: PreTrainedModel, ids: Sequence[int], tokens: int) -> list[int]:
    """transformers' own greedy continuation."""
    given = torch.tensor([list(ids)])
    untyped: Any = made
    output = untyped.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in output[0, len(ids) :]]
