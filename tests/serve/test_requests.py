"""Bad requests: each is answered by 4xx in OpenAI's form, naming the field, and nothing is made."""

import json
from typing import Any

import openai
import pytest
from serving import CONTEXT, MESSAGES, NAME, PROMPT, Running, chat_ids, ready, running
from vocabularies import tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HALF = "\ud800"


def said(content: Any, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **fields}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": CONTEXT}, "max_completion_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": [HALF]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": True}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logit_bias": {str(n): n for n in range(9999)}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": said("x") * 257}, "messages"),
        ({"messages": said(None)}, "messages[0].content"),
        ({"messages": said(HALF)}, "messages[0].content"),
        ({"messages": said([{"type": "image_url", "image_url": "x"}])}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": said("x", audio={})}, "messages[0].audio"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "late"}]}, "messages"),
        ({"messages": said("raven " * 200)}, "messages"),
        ({"messages": said("raven " * 99999)}, "messages"),
        ({"model": 5}, "model"),
        ({HALF: 1}, None),
        ({f"field {n}": n for n in range(9999)}, None),
    ],
)
def test_what_a_chat_cannot_ask(server: Running, fields: dict[str, Any], param: str | None) -> None:
    reply = server.chat(**fields)
    assert reply.status == 400, reply.body
    assert reply.error["param"] == param and reply.error["type"] == "invalid_request_error"
    assert server.chat().status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [290]}, "prompt"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [1] * CONTEXT}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ["a"] * 6, "n": 3}, "n"),
        ({"prompt": HALF}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"echo": 0}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_a_completion_cannot_ask(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.send(COMPLETIONS, {"model": NAME, "prompt": PROMPT, **fields})
    assert reply.status == 400, reply.body
    assert reply.error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "model"',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 100_000,
        b"\x00",
        json.dumps({"model": NAME}).encode("utf-16"),
    ],
)
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        reply = server.send(path, body)
        assert reply.status == 400 and reply.error["type"] == "invalid_request_error", reply.body


def test_another_kind_of_body_is_not_taken_for_json(server: Running) -> None:
    """A web page of another site can send text/plain without being asked, but not application/json."""
    asked = json.dumps({"model": NAME, "messages": MESSAGES, "max_tokens": 1}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = server.send(CHAT, asked, Content_Type=kind)
        assert reply.status == 400 and "application/json" in reply.error["message"]
    assert server.send(CHAT, asked).status == 200


def test_other_paths_methods_and_models(server: Running, client: openai.OpenAI) -> None:
    assert server.send("/v1/embeddings", {}).status == 404
    assert server.send(CHAT, method="GET").status == 405
    for path in ("/v1/embeddings", "/nothing", "/docs"):
        assert server.send(path, method="GET").error
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_the_context_is_told_of(client: openai.OpenAI) -> None:
    room = CONTEXT - len(chat_ids())
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=room + 1)
    assert caught.value.code == "context_length_exceeded"
    assert f"{CONTEXT} tokens" in str(caught.value) and f"{room} or fewer" in str(caught.value)
    assert client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=room).usage is not None


def test_a_shorter_context_than_the_model_s(server: Running) -> None:
    with running(ready(context=40)) as short:
        assert short.chat(max_tokens=40 - len(chat_ids())).status == 200
        assert short.chat(max_tokens=41 - len(chat_ids())).error["code"] == "context_length_exceeded"


def test_so_many_logprobs_are_refused_as_would_fill_memory() -> None:
    long = ready(long_model())
    with running(long) as server:
        asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 9000}
        assert server.chat(**asked, n=2).error["param"] == "logprobs"


def long_model() -> Any:
    from serving import a_model

    return a_model(max_position_embeddings=10_000)


def test_a_template_that_refuses_the_messages_is_the_client_s_fault() -> None:
    words = tokenizer("small")
    words.chat_template = "{{ raise_exception('no such order of messages') }}"
    try:
        with running(ready(words=words)) as server:
            assert "no such order" in server.chat().error["message"]
    finally:
        words.chat_template = None
