"""Requests beside each other: turns, refusals, failures, clients that leave, time limits, the end."""

import gc
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import serving
import torch
from serving import (
    MESSAGES,
    NAME,
    PROMPT,
    Running,
    a_model,
    blocked,
    chat_ids,
    decoded,
    encoded,
    greedy,
    ready,
    running,
)

from kinfolk.serve.limits import Limits
from kinfolk.serve.server import Address, listen

CHAT: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_runs_one_waits_and_a_third_is_refused() -> None:
    made = a_model()
    passes = blocked(made)
    with running(ready(made), Limits(waiting=1)) as server, ThreadPoolExecutor(2) as people:
        first = people.submit(server.client().chat.completions.create, **CHAT)
        until(lambda: server.metric("kinfolk_generations_running") == 1)
        second = people.submit(server.client().completions.create, model=NAME, prompt=PROMPT, temperature=0)
        until(lambda: server.metric("kinfolk_generations_waiting") == 1)
        refused = server.chat()
        assert refused.status == 429 and refused.error["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            server.client().chat.completions.create(**CHAT)
        assert server.send("/health", method="GET").status == 200
        passes.release(1000)
        # Both are answered, each as if it were alone.
        assert first.result(20).choices[0].message.content == decoded(greedy(a_model(), chat_ids(), 12))
        assert second.result(20).choices[0].text == decoded(greedy(a_model(), encoded(PROMPT), 16))
        assert server.chat().status == 200


def test_many_at_once_get_the_answers_they_get_alone(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        return client.chat.completions.create(**{**CHAT, "temperature": 1, "seed": seed}).choices[0].message.content

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as people:
        assert list(people.map(ask, range(4))) == alone


def test_a_client_that_leaves_ends_its_generation() -> None:
    made = a_model()
    passes = blocked(made)
    with running(ready(made), Limits(waiting=3)) as server:
        for stream in (False, True):
            before = server.metric('kinfolk_generations_total{end="cancelled"}')
            connection = ask_and_stay(server, stream)
            until(lambda: server.metric("kinfolk_generations_running") == 1)
            waiting = ask_and_stay(server, stream)
            until(lambda: server.metric("kinfolk_generations_waiting") == 1)
            waiting.close()
            until(lambda: server.metric("kinfolk_generations_waiting") == 0)
            connection.close()
            time.sleep(0.2)  # for the server to see it
            passes.release(3)
            until(lambda before=before: server.metric('kinfolk_generations_total{end="cancelled"}') == before + 2)  # type: ignore[misc]
            until(lambda: server.metric("kinfolk_generations_running") == 0)
            assert server.metric("kinfolk_generated_tokens_total") <= 6
            while passes.acquire(blocking=False):
                pass
        passes.release(1000)
        assert server.chat().status == 200


def ask_and_stay(server: Running, stream: bool) -> Any:
    connection = server.connect()
    body = json.dumps({**CHAT, "max_tokens": 90, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_that_is_not_taken_in_ends_its_generation(monkeypatch: pytest.MonkeyPatch, leaves: bool) -> None:
    """It stands at an event that is being sent, where it is not cancelled itself; nor is it left to the collector."""

    def narrow(address: Address) -> socket.socket:
        found = listen(address)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return found

    monkeypatch.setattr(serving, "listen", narrow)
    made = a_model()
    made.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    asked = {**CHAT, "max_tokens": 60, "n": 16, "stream": True, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(ready(made), Limits(send_seconds=60 if leaves else 0.5)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", urlsplit(server.url).port))
        gc.disable()
        try:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if leaves:  # once the buffers are full
                until(lambda: server.metric("kinfolk_generated_tokens_total") >= 60)
                connection.close()
            until(lambda: server.metric('kinfolk_generations_total{end="cancelled"}') == 1, 5)
        finally:
            gc.enable()
        assert server.metric("kinfolk_generated_tokens_total") < 16 * 60


def test_a_failure_is_one_request_s_own(caplog: pytest.LogCaptureFixture) -> None:
    made = a_model()
    faults: list[Exception] = []

    def fail(*_: Any) -> None:
        if faults:
            raise faults.pop()

    made.register_forward_pre_hook(fail)
    wanted = decoded(greedy(a_model(), chat_ids(), 12))
    with running(ready(made)) as server, caplog.at_level(logging.CRITICAL, "kinfolk.serve"):
        client = server.client()
        for fault in (RuntimeError("secret detail"), MemoryError(), torch.OutOfMemoryError("no memory"), KeyError(3)):
            faults.append(fault)
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**CHAT)
            assert "secret" not in str(caught.value) and caught.value.type == "server_error"
            assert client.chat.completions.create(**CHAT).choices[0].message.content == wanted
        assert server.metric('kinfolk_generations_total{end="failed"}') == 4


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event() -> None:
    made = a_model()
    passes = blocked(made)
    broken = threading.Event()

    def fail(*_: Any) -> None:
        if broken.is_set():
            raise RuntimeError("secret detail")

    made.register_forward_pre_hook(fail)
    with running(ready(made)) as server:
        passes.release(4)
        stream = server.client().chat.completions.create(**CHAT, stream=True)
        got = [next(stream)]
        broken.set()
        passes.release(1000)
        with pytest.raises(openai.APIError, match="the server failed"):
            got.extend(stream)
        assert not any(choice.finish_reason for chunk in got for choice in chunk.choices)
        broken.clear()
        wanted = decoded(greedy(a_model(), chat_ids(), 12))
        assert server.client().chat.completions.create(**CHAT).choices[0].message.content == wanted


def test_logits_that_are_no_numbers_are_a_failure() -> None:
    made = a_model()
    made.register_forward_hook(lambda _, __, output: output.logits.fill_(torch.nan) and None)
    with running(ready(made)) as server:
        assert server.chat().status == 500
        assert server.send("/health", method="GET").status == 200


def test_an_answer_ends_at_the_time_limit() -> None:
    made = a_model()
    made.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    with running(ready(made), Limits(generation_seconds=0.3)) as server:
        found = server.client().chat.completions.create(**{**CHAT, "max_tokens": 90, "n": 3})
        assert [choice.finish_reason for choice in found.choices] == ["length"] * 3
        whole = decoded(greedy(a_model(), chat_ids(), 90))
        assert whole.startswith((found.choices[0].message.content or "").rstrip("�"))
        assert found.choices[2].message.content == ""
        assert found.usage is not None and 1 <= found.usage.completion_tokens < 12
        assert server.metric('kinfolk_generations_total{end="timeout"}') == 1


def test_what_runs_when_the_server_ends_is_still_answered() -> None:
    made = a_model()
    passes = blocked(made)
    with ThreadPoolExecutor(1) as people:
        with running(ready(made)) as server:
            running_one = people.submit(server.client().chat.completions.create, **CHAT)
            until(lambda: server.metric("kinfolk_generations_running") == 1)
            threading.Timer(0.3, passes.release, (1000,)).start()
        assert running_one.result(20).choices[0].message.content == decoded(greedy(a_model(), chat_ids(), 12))
