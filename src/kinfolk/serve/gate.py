"""What every request must pass before its body is looked at: the host, the key, a place, the body's size.

Pure ASGI, so that a refused body is never held in memory: it is read and thrown away, which lets the client read the
answer instead of a broken connection.
"""

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinfolk.serve.errors import ApiError
from kinfolk.serve.limits import Limits
from kinfolk.serve.metrics import Metrics

OPEN_PATHS = ("/health",)
"""Need no key."""

ANSWERING_PATHS = ("/v1/chat/completions", "/v1/completions")
"""Take one of the limited places."""

COUNTED_PATHS = (*ANSWERING_PATHS, "/v1/models", "/health", "/metrics", "/openapi.json")

DRAINED_BYTES = 1 << 26
"""Most bytes of a refused body that are read and thrown away."""


@dataclass(frozen=True)
class Door:
    """Who may come in."""

    key: str | None
    """None lets everybody in who can reach the server."""

    hosts: frozenset[str] | None
    """Names by which the server may be called, None for any. Without a key this keeps web pages of other names out."""


class _NotReadError(Exception):
    """The client does not read its answer, and may not keep its place for ever."""


class Gate:
    """Middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        limits: Limits,
        most_bytes: int,
        metrics: Metrics,
        retry_after: Callable[[], int],
    ) -> None:
        self._app, self._door, self._limits, self._metrics = app, door, limits, metrics
        self._most_bytes, self._retry_after = most_bytes, retry_after
        self._inside = 0
        """Requests that are being read, wait, or are answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                async with asyncio.timeout(self._limits.send_seconds):
                    await send(message)
            except TimeoutError:
                raise _NotReadError from None

        try:
            await self._admit(scope, receive, counted)
        except _NotReadError:
            status = 499
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in COUNTED_PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = scope["method"] == "POST" and scope["path"] in ANSWERING_PATHS
        try:
            self._check(scope)
            if not answering:
                await self._app(scope, receive, send)
                return
            self._enter()
        except ApiError as error:
            if answering:
                await self._drain(receive)
            await _answer(error, scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except ApiError as error:
            self._inside -= 1
            await _answer(error, scope, receive, send)
            return
        except BaseException:
            self._inside -= 1
            raise
        try:
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._inside -= 1

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._door.hosts is not None and _host(headers.get(b"host", b"")) not in self._door.hosts:
            raise ApiError(400, "the server is not called by this name; it needs an API key to be", param="Host")
        if self._door.key is None or scope["path"] in OPEN_PATHS:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._door.key.encode())
        if kind.lower() != b"bearer" or not right:
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _enter(self) -> None:
        if self._inside > self._limits.waiting:
            raise ApiError(
                429,
                f"{self._inside} requests are being answered or wait, which is all that may",
                kind="rate_limit_error",
                code="too_many_requests",
                headers={"Retry-After": str(self._retry_after())},
            )
        self._inside += 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. ApiError for one that is too large, by its own word or by count, or too slow."""
        said = dict(scope["headers"]).get(b"content-length", b"0")
        announced = int(said) if said.isdigit() and len(said) < 20 else 0
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more and max(size, announced) <= self._most_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client went away")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._limits.body_seconds:g} seconds") from None
        if max(size, announced) > self._most_bytes:
            chunks.clear()
            if more:
                await self._drain(receive)
            raise ApiError(413, f"a body may have {self._most_bytes:,} bytes", code="request_too_large")
        return b"".join(chunks)

    async def _drain(self, receive: Receive) -> None:
        """Read what the client still sends, within bounds, and forget it."""
        left = DRAINED_BYTES
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _host(header: bytes) -> str:
    """The name in a Host header, without its port.

    >>> _host(b"LOCALHOST:8000"), _host(b"[::1]:8000")
    ('localhost', '::1')
    """
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what comes from the client after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    content: Any = error.body.model_dump()
    await JSONResponse(content, error.status, error.headers)(scope, receive, send)
