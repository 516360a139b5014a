"""Who may come in, and how much they may bring."""

import asyncio
import json
import socket
import time
import tracemalloc
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from serving import CONTEXT, MESSAGES, NAME, Reply, Running, ready, running

from kinfolk.errors import KinfolkError
from kinfolk.serve.gate import Door, Gate
from kinfolk.serve.limits import Limits, most_bytes
from kinfolk.serve.metrics import Metrics
from kinfolk.serve.server import Address, door

CHAT = "/v1/chat/completions"
MOST = most_bytes(CONTEXT)


def run(work: Coroutine[Any, Any, object]) -> None:
    """Do it in a thread of its own: where a browser was tested before, this one has an event loop already."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def test_a_key_is_asked_for_everywhere_but_at_health() -> None:
    with running(ready(), key="right-key") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/models/tiny", "/nothing"):
            assert server.send(path, method="GET").status == 401
        assert server.send("/health", method="GET").status == 200
        for given in ("Bearer wrong", "Bearer right-ke", "Bearer right-key2", "Basic right-key", "right-key", "Bearer"):
            reply = server.send("/v1/models", method="GET", Authorization=given)
            assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        assert server.chat().status == 401
        assert server.send("/metrics", method="GET", Authorization="bearer right-key").status == 200
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        client = server.client("right-key")
        assert client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=1).choices
        # A large body without the key is refused by its answer, not by a broken connection.
        assert server.send(CHAT, b"x" * (8 << 20)).status == 401


@pytest.mark.parametrize(
    ("host", "key", "message"),
    [
        ("0.0.0.0", None, "no API key"),
        ("::", None, "no API key"),
        ("192.168.1.4", None, "no API key"),
        ("my-machine", None, "no API key"),
        ("127.0.0.1", "", "empty"),
        ("127.0.0.1", "kéy", "header"),
        ("127.0.0.1", "a b", "header"),
        ("127.0.0.1", "a\n", "header"),
    ],
)
def test_doors_that_cannot_be(host: str, key: str | None, message: str) -> None:
    with pytest.raises(KinfolkError, match=message):
        door(Address(host, 0), key)


def test_loopback_needs_no_key_and_others_with_one_take_any_name() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        assert host in (door(Address(host, 0), None).hosts or ())
    assert door(Address("0.0.0.0", 0), "key").hosts is None


def test_without_a_key_the_server_has_only_this_machine_s_names(server: Running) -> None:
    """So that a web page whose name was made to point here (DNS rebinding) cannot read answers."""
    for name, status in (("evil.example", 400), ("evil.example:80", 400), ("localhost:1", 200), ("[::1]:8000", 200)):
        assert server.send("/v1/models", method="GET", Host=name).status == status
    assert server.send(CHAT, {}, Host="evil.example").error["param"] == "Host"


def chat_of(size: int) -> bytes:
    """A good request of so many bytes."""
    body = json.dumps({"model": NAME, "messages": MESSAGES, "max_tokens": 1}).encode()
    return body + b" " * (size - len(body))


def test_bodies_up_to_the_limit(server: Running) -> None:
    assert server.send(CHAT, chat_of(MOST)).status == 200
    for size in (MOST + 1, 10 * MOST):
        reply = server.send(CHAT, chat_of(size))
        assert reply.status == 413 and reply.error["code"] == "request_too_large"


def test_chunked_bodies_are_counted_as_they_come(server: Running) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = chat_of(size)
        return (body[at : at + 65536] for at in range(0, size, 65536))

    assert server.send(CHAT, chunks(MOST)).status == 200
    began = time.monotonic()
    assert server.send(CHAT, chunks(MOST + 1)).status == 413
    assert time.monotonic() - began < Limits().body_seconds / 2  # at once, not when the time for a body is over


def raw(server: Running, head: str, body: bytes = b"") -> Reply:
    """Bytes as they are, and what comes back."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    top, _, rest = answer.partition(b"\r\n\r\n")
    return Reply(int(top.split()[1]), {}, rest)


POST = f"POST {CHAT} HTTP/1.1\nHost: localhost\nConnection: close\nContent-Type: application/json\n"


def test_a_body_that_does_not_come_is_not_waited_for_long() -> None:
    with running(ready(), Limits(body_seconds=0.3)) as server:
        began = time.monotonic()
        reply = raw(server, POST + "Content-Length: 1000", b'{"model"')
        assert reply.status == 408 and reply.error
        assert raw(server, POST + f"Content-Length: {2**50}", b"x").status == 413
        assert time.monotonic() - began < 10
        assert server.chat().status == 200


def test_a_length_that_is_none(server: Running) -> None:
    for length in ("-1", "x", "9" * 30, "1_0"):
        assert raw(server, POST + f"Content-Length: {length}", b"{}").status in (400, 413)
    assert server.chat().status == 200


def test_a_place_is_given_back_whatever_came_of_the_request() -> None:
    bad: list[Any] = [b"{", b"x" * (MOST + 1), {}, {"model": "x"}]
    with running(ready(), Limits(waiting=0)) as server:
        for body in bad:
            assert 400 <= server.send(CHAT, body).status < 429
        raw(server, POST + "Content-Length: 2", b"{}")
        assert server.chat().status == 200


def test_a_client_that_does_not_read_loses_its_place() -> None:
    async def answer(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def unread(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    sent: list[dict[str, Any]] = []

    async def read(message: Any) -> None:
        sent.append(message)

    async def both() -> None:
        limits = Limits(waiting=0, send_seconds=0.1)
        gate = Gate(answer, Door(None, None), limits, 1000, Metrics(), lambda: 1)
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        await asyncio.wait_for(gate(scope, body, unread), 10)  # type: ignore[arg-type]
        await gate(scope, body, read)

    run(both())
    assert [message.get("status") for message in sent] == [200, None]


def test_a_body_without_an_end_is_not_kept() -> None:
    """Only what fits is held: the rest is thrown away, for a while, and then the answer comes."""
    received, sent = 0, []

    async def never(*_: Any) -> None:
        raise AssertionError("refused before the application")

    async def endless() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": received < 200}

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(never, Door(None, None), Limits(body_seconds=5), 3 << 20, Metrics(), lambda: 1)
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    tracemalloc.start()
    run(gate(scope, endless, send))  # type: ignore[arg-type]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sent[0]["status"] == 413 and received < 100 and most < 8 << 20


@pytest.mark.parametrize("limits", [{"waiting": -1}, {"generation_seconds": 0.0}, {"body_seconds": float("nan")}])
def test_limits_that_are_none(limits: dict[str, Any]) -> None:
    with pytest.raises(KinfolkError) as caught:
        Limits(**limits)
    assert caught.value.where in limits


def test_what_uvicorn_answers_itself_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/serve.md says so: these never reach the gate."""
    monkeypatch.setattr("kinfolk.serve.server.MOST_CONNECTIONS", 1)
    with running(ready(), key="right-key") as server:
        broken = raw(server, "no http")
        assert broken.status == 400 and broken.body == b"Invalid HTTP request received."
        kept = server.connect()
        kept.request("GET", "/health")
        assert kept.getresponse().status == 200
        beyond = server.send("/v1/models", method="GET")
        assert beyond.status == 503 and beyond.body == b"Service Unavailable"
        assert beyond.headers["content-type"].startswith("text/plain")
        kept.close()
