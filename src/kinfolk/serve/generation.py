"""One answer: transformers' `generate`, watched token by token."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from kinfolk.serve.draw import Draw, Logprobs, generator_of
from kinfolk.serve.responses import Finish, TokenLogprob, TopLogprob
from kinfolk.serve.served import Served
from kinfolk.serve.text import Stops, TextStream


@dataclass(frozen=True)
class Wish:
    """How an answer is made."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    logprobs: int | None
    """How many of the likeliest tokens are told of at each token, None for not even the one that came."""


@dataclass(frozen=True)
class Piece:
    """What an answer gained: text that stands, and the log-probabilities of its tokens."""

    choice: int
    text: str
    logprobs: tuple[tuple[int, TokenLogprob], ...] = ()
    """Each with the character of the answer at which its token begins."""

    finish: Finish | None = None
    """Set in the last piece."""


def generate_answer(
    served: Served,
    prompt: list[int],
    wish: Wish,
    choice: int,
    answer: int,
    give: Callable[[Piece], None],
    ended: Callable[[], bool],
) -> int:
    """Make one answer and give it out in pieces; returns its number of tokens.

    `choice` is its number in the request, `answer` that among the answers to the same prompt. `ended` is asked at every
    token: once it is true, the answer ends there. Any error of the model is raised.
    """
    device = served.model.device
    draw = Draw(served.vocabulary, wish.temperature, wish.top_p, generator_of(wish.seed, answer, device), wish.logprobs)
    watch = _Watch(served, choice, wish.stops, draw, give, ended)
    settings: Any = GenerationConfig
    ids = torch.tensor([prompt], device=device)
    untyped: Any = served.model
    untyped.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=settings(max_new_tokens=wish.max_tokens, do_sample=False, use_cache=True),
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    watch.end()
    return watch.tokens


class _Watch(StoppingCriteria):
    """Reads every new token: gives out its text, and says when the answer is complete."""

    def __init__(
        self,
        served: Served,
        choice: int,
        stops: tuple[str, ...],
        draw: Draw,
        give: Callable[[Piece], None],
        ended: Callable[[], bool],
    ) -> None:
        self._served, self._choice, self._draw, self._give, self._ended = served, choice, draw, give, ended
        self._stream, self._stops = TextStream(served.text), Stops(stops)
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._read = self._given = 0
        """Characters that tokens became, and those that were given out."""
        self._at_end = False
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether the answer (1,) is complete."""
        token = int(input_ids[0, -1])
        self.tokens += 1
        self._at_end = token in self._served.ends
        if not self._at_end:
            if self._draw.last is not None:
                self._waiting.append((self._read, _shown(self._served, token, self._draw.last)))
            self._add(self._stream.push(token))
        done = self._at_end or self._stops.stopped or self._ended()
        return torch.tensor([done], device=input_ids.device)

    def end(self) -> None:
        """Give out what was held back, and why the answer ended."""
        self._add(self._stream.end())
        rest = self._stops.end()
        self._given += len(rest)
        stopped = self._stops.stopped
        left = () if stopped else tuple(self._waiting)
        self._give(Piece(self._choice, rest, left, "stop" if stopped or self._at_end else "length"))

    def _add(self, text: str) -> None:
        self._read += len(text)
        certain = self._stops.push(text)
        self._given += len(certain)
        ready = []
        while self._waiting and self._waiting[0][0] < self._given:
            ready.append(self._waiting.popleft())
        if certain or ready:
            self._give(Piece(self._choice, certain, tuple(ready)))


def _shown(served: Served, token: int, found: Logprobs) -> TokenLogprob:
    top = []
    for other, logprob in found.top:
        text, content = served.spelled(other)
        top.append(TopLogprob(token=text, logprob=logprob, bytes=None if content is None else list(content)))
    text, content = served.spelled(token)
    return TokenLogprob(
        token=text,
        logprob=found.logprob,
        bytes=None if content is None else list(content),
        top_logprobs=top,
    )
