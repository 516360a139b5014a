"""Pieces of answers become OpenAI's objects, whole or as a stream of events."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from kinfolk.serve.generation import Piece
from kinfolk.serve.responses import (
    AnsweredMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Finish,
    TokenLogprob,
    Usage,
)


@dataclass
class Answer:
    """All pieces of one answer so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    finish: Finish = "length"

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
        self.texts.append(piece.text)
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)


class Form(Protocol):
    """How one kind of request is answered."""

    def whole(self, answers: list[Answer], usage: Usage) -> BaseModel:
        """The body of an answer that is not streamed."""
        ...

    def opening(self, choice: int) -> ChatChunk | None:
        """The event before an answer's first piece."""
        ...

    def event(self, piece: Piece) -> ChatChunk | Completion:
        """The event of a piece."""
        ...

    def closing(self, usage: Usage) -> BaseModel:
        """The event that tells the usage."""
        ...


@dataclass(frozen=True)
class About:
    """What all objects of one answer have in common."""

    id: str
    created: int
    model: str
    logprobs: bool

    @classmethod
    def new(cls, prefix: str, model: str, logprobs: bool) -> "About":
        """With an id that nobody else has."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model, logprobs)


@dataclass(frozen=True)
class ChatForm:
    """Answers to /v1/chat/completions."""

    about: About

    def whole(self, answers: list[Answer], usage: Usage) -> ChatCompletion:
        """See `Form`."""
        choices = [
            ChatChoice(
                index=index,
                message=AnsweredMessage(role="assistant", content=answer.text, refusal=None),
                logprobs=self._logprobs(answer.logprobs),
                finish_reason=answer.finish,
            )
            for index, answer in enumerate(answers)
        ]
        about = self.about
        return ChatCompletion(
            id=about.id,
            object="chat.completion",
            created=about.created,
            model=about.model,
            choices=choices,
            usage=usage,
        )

    def opening(self, choice: int) -> ChatChunk:
        """See `Form`."""
        delta = Delta(role="assistant", content="")
        return self._chunk([ChunkChoice(index=choice, delta=delta, logprobs=None, finish_reason=None)])

    def event(self, piece: Piece) -> ChatChunk:
        """See `Form`."""
        delta = Delta(content=piece.text) if piece.text or not piece.finish else Delta()
        logprobs = self._logprobs(piece.logprobs) if piece.logprobs else None
        return self._chunk(
            [ChunkChoice(index=piece.choice, delta=delta, logprobs=logprobs, finish_reason=piece.finish)]
        )

    def closing(self, usage: Usage) -> ChatChunk:
        """See `Form`."""
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        about = self.about
        return ChatChunk(
            id=about.id, object="chat.completion.chunk", created=about.created, model=about.model, choices=choices
        )

    def _logprobs(self, entries: Sequence[tuple[int, TokenLogprob]]) -> ChatLogprobs | None:
        return ChatLogprobs(content=[entry for _, entry in entries], refusal=None) if self.about.logprobs else None


@dataclass(frozen=True)
class CompletionForm:
    """Answers to /v1/completions."""

    about: About

    def whole(self, answers: list[Answer], usage: Usage) -> Completion:
        """See `Form`."""
        body = self._completion(
            [self._choice(index, answer.text, answer.logprobs, answer.finish) for index, answer in enumerate(answers)]
        )
        body.usage = usage
        return body

    def opening(self, choice: int) -> None:
        """See `Form`."""

    def event(self, piece: Piece) -> Completion:
        """See `Form`."""
        return self._completion([self._choice(piece.choice, piece.text, list(piece.logprobs), piece.finish)])

    def closing(self, usage: Usage) -> Completion:
        """See `Form`."""
        body = self._completion([])
        body.usage = usage
        return body

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        about = self.about
        return Completion(
            id=about.id, object="text_completion", created=about.created, model=about.model, choices=choices
        )

    def _choice(
        self, index: int, text: str, entries: list[tuple[int, TokenLogprob]], finish: Finish | None
    ) -> CompletionChoice:
        logprobs = None
        if self.about.logprobs:
            logprobs = CompletionLogprobs(
                tokens=[entry.token for _, entry in entries],
                token_logprobs=[entry.logprob for _, entry in entries],
                top_logprobs=[_by_token(entry) for _, entry in entries],
                text_offset=[offset for offset, _ in entries],
            )
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)


def _by_token(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the one that came; where two are spelled alike, the likelier one."""
    found: dict[str, float] = {}
    for each in (*entry.top_logprobs, entry):
        found.setdefault(each.token, each.logprob)
    return found


def to_json(body: BaseModel) -> str:
    """As it is sent: fields that were not set are left out."""
    return body.model_dump_json(exclude_unset=True)


def server_sent(data: str) -> str:
    """One event of a stream."""
    return f"data: {data}\n\n"


LAST_EVENT = server_sent("[DONE]")
"""Ends a stream that went well."""
