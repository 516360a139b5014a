"""A request on its way: its job is given to the engine, and what comes back is sent, whole or event by event.

Whenever nobody waits for an answer any more, its job is cancelled.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kinfolk.serve.answers import LAST_EVENT, Answer, Form, server_sent, to_json
from kinfolk.serve.engine import Done, Engine, Event, Failed, Job
from kinfolk.serve.errors import ApiError, failed
from kinfolk.serve.generation import Piece, Wish
from kinfolk.serve.responses import Usage

GONE = 499
"""The status, which nobody sees, of an answer to a client that went away (as nginx counts it)."""


@dataclass(frozen=True)
class Work:
    """What the engine is to do for a request."""

    prompts: list[list[int]]
    answers: int
    """To each prompt."""

    wish: Wish

    def usage(self, tokens: int) -> Usage:
        """With so many tokens of answers."""
        prompts = sum(map(len, self.prompts))
        return Usage(prompt_tokens=prompts, completion_tokens=tokens, total_tokens=prompts + tokens)


async def answered(engine: Engine, work: Work, form: Form, http: Request) -> Response:
    """The whole answer. ApiError where the model fails."""
    collecting = asyncio.ensure_future(_whole(engine, work, form))
    leaving = asyncio.ensure_future(_client_gone(http))
    try:
        await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=GONE)
        return Response(await collecting, media_type="application/json")
    finally:
        collecting.cancel()
        leaving.cancel()


def streamed(engine: Engine, work: Work, form: Form, with_usage: bool) -> Response:
    """The answer as server-sent events."""
    return _EventStream(_stream(engine, work, form, with_usage))


class _EventStream(StreamingResponse):
    """Closes its events when it ends, however it does.

    Where sending one fails, their generator stands at a yield and does not learn of it: the job would go on until the
    generator is collected as garbage.
    """

    def __init__(self, events: AsyncGenerator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _whole(engine: Engine, work: Work, form: Form) -> str:
    answers = [Answer() for _ in range(len(work.prompts) * work.answers)]
    usage = work.usage(0)
    async with aclosing(_events(engine, work)) as events:
        async for event in events:
            if isinstance(event, Done):
                usage = work.usage(event.tokens)
            else:
                answers[event.choice].add(event)
    return to_json(form.whole(answers, usage))


async def _stream(engine: Engine, work: Work, form: Form, with_usage: bool) -> AsyncGenerator[str]:
    opened = set()
    try:
        async with aclosing(_events(engine, work)) as events:
            async for event in events:
                if isinstance(event, Done):
                    if with_usage:
                        yield server_sent(to_json(form.closing(work.usage(event.tokens))))
                    continue
                opening = None if event.choice in opened else form.opening(event.choice)
                opened.add(event.choice)
                for body in (opening, form.event(event)):
                    if body is None:
                        continue
                    if with_usage:
                        body.usage = None  # told of, as not known yet
                    yield server_sent(to_json(body))
    except ApiError as error:  # too late for a status: the stream ends with it
        yield server_sent(error.body.model_dump_json())
        return
    yield LAST_EVENT


async def _events(engine: Engine, work: Work) -> AsyncGenerator[Piece | Done]:
    """What the engine tells of a job; the job is cancelled when this is closed. ApiError where it fails."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(queue.put_nowait, event)

    job = Job(work.prompts, work.answers, work.wish, tell)
    engine.submit(job)
    try:
        while True:
            event = await queue.get()
            if isinstance(event, Failed):
                raise failed() from event.error
            yield event
            if isinstance(event, Done):
                return
    finally:
        engine.cancel(job)


async def _client_gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
