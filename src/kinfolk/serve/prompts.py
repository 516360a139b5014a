"""A request becomes token ids and a number of tokens to make, both within the model's context."""

import secrets
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.serve.errors import invalid
from kinfolk.serve.generation import Wish
from kinfolk.serve.limits import MOST_CHOICES, MOST_LOGPROBS
from kinfolk.serve.requests import ChatRequest, CompletionRequest
from kinfolk.serve.served import Served
from kinfolk.transfer.chat import prompt_ids

DEFAULT_COMPLETION_TOKENS = 16
"""As OpenAI's API has it. A chat's answer may by default fill the context."""


def chat_prompt(served: Served, request: ChatRequest) -> list[int]:
    """Ids of a conversation and the beginning of an answer. ApiError where the template refuses it."""
    messages = [message.plain() for message in request.messages]
    _check_length(served, "".join(message["content"] for message in messages), "messages")
    try:
        ids = prompt_ids(served.tokenizer, messages)
    except KinfolkError as error:
        raise invalid(error.problem, "messages") from error
    return _not_empty(served, ids)


def completion_prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
    """Ids of each prompt, as the tokenizer begins a text. ApiError for ids that it does not have."""
    prompt = request.prompt
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    every: Any = prompt if several else [prompt]
    answers = request.n or 1
    if len(every) * answers > MOST_CHOICES:
        raise invalid(f"{len(every)} prompts with {answers} answers each are more than {MOST_CHOICES} in all", "n")
    return [_not_empty(served, _ids(served, each)) for each in every]


def chat_wish(served: Served, request: ChatRequest, prompt: list[int]) -> Wish:
    """How to answer a chat request. ApiError where that would not fit."""
    asked = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    room = _room(served, [prompt], "messages")
    top = (request.top_logprobs or 0) if request.logprobs else None
    param = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    return _wish(request, _tokens(served, asked, room, room, param), top, 1)


def completion_wish(served: Served, request: CompletionRequest, prompts: list[list[int]]) -> Wish:
    """How to answer a completion request. ApiError where that would not fit."""
    room = _room(served, prompts, "prompt")
    tokens = _tokens(served, request.max_tokens, room, min(DEFAULT_COMPLETION_TOKENS, room), "max_tokens")
    return _wish(request, tokens, request.logprobs, len(prompts))


def _ids(served: Served, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        _check_length(served, prompt, "prompt")
        ids: list[int] = served.tokenizer(prompt)["input_ids"]
        return ids
    highest = max(prompt)
    if highest >= served.vocabulary:
        raise invalid(f"the model has no token {highest}: ids are below {served.vocabulary}", "prompt")
    return prompt


def _check_length(served: Served, text: str, param: str) -> None:
    """Refuse what is much too long before the seconds that it would take to split it into tokens."""
    size = len(text.encode())
    if served.most_bytes is not None and size > served.most_bytes:
        raise invalid(
            f"the model's context has {served.context} tokens, and {size:,} bytes of text have more",
            param,
            "context_length_exceeded",
        )


def _not_empty(served: Served, ids: list[int]) -> list[int]:
    if ids or served.begin is None:
        if not ids:
            raise invalid("an empty prompt, and the model has no token that begins a text", "prompt")
        return ids
    return [served.begin]


def _room(served: Served, prompts: list[list[int]], param: str) -> int:
    """Tokens that are left for an answer."""
    longest = max(map(len, prompts))
    if longest >= served.context:
        raise invalid(
            f"the model's context has {served.context} tokens, the prompt {longest}: none is left for an answer",
            param,
            "context_length_exceeded",
        )
    return served.context - longest


def _tokens(served: Served, asked: int | None, room: int, default: int, param: str) -> int:
    if asked is None:
        return default
    if asked > room:
        raise invalid(
            f"the model's context has {served.context} tokens: the prompt has {served.context - room}, and {asked} are "
            f"asked for; ask for {room} or fewer",
            param,
            "context_length_exceeded",
        )
    return asked


def _wish(request: ChatRequest | CompletionRequest, tokens: int, logprobs: int | None, prompts: int) -> Wish:
    entries = 0 if logprobs is None else prompts * (request.n or 1) * tokens * (1 + logprobs)
    if entries > MOST_LOGPROBS:
        raise invalid(
            f"up to {entries:,} log-probabilities are more than {MOST_LOGPROBS:,}: ask for fewer, or for fewer tokens",
            "logprobs",
        )
    return Wish(
        max_tokens=tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stops=request.stops,
        logprobs=logprobs,
    )
