"""The paths of the server."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from kinfolk import __version__
from kinfolk.serve.answering import Work, answered, streamed
from kinfolk.serve.answers import About, ChatForm, CompletionForm, Form
from kinfolk.serve.engine import Engine
from kinfolk.serve.errors import ApiError, ErrorBody, failed, of_validation
from kinfolk.serve.gate import Door, Gate
from kinfolk.serve.limits import Limits, most_bytes
from kinfolk.serve.metrics import Metrics
from kinfolk.serve.prompts import chat_prompt, chat_wish, completion_prompts, completion_wish
from kinfolk.serve.requests import ChatRequest, CompletionRequest
from kinfolk.serve.responses import ChatCompletion, Completion, Health, ModelCard, ModelList
from kinfolk.serve.served import Served

T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "A request that cannot be answered, and why."},
    "5XX": {"model": ErrorBody, "description": "The server's own fault."},
}
_EVENTS: dict[str, Any] = {
    "description": "The answer; with `stream` as server-sent events, the last of which is [DONE].",
    "content": {"text/event-stream": {}},
}
_METRICS: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


def create_app(served: Served, door: Door, limits: Limits) -> FastAPI:
    """The application for one model; its engine starts and stops with it."""
    metrics = Metrics()
    engine = Engine(served, limits.generation_seconds, metrics)
    encoding = ThreadPoolExecutor(1, "kinfolk-encoding")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)
        encoding.shutdown(cancel_futures=True)

    app = FastAPI(title="kinfolk serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        Gate,
        door=door,
        limits=limits,
        most_bytes=most_bytes(served.context),
        metrics=metrics,
        retry_after=lambda: min(max(math.ceil(engine.usual_seconds), 1), 60),
    )
    _answer_errors(app)

    async def encoded(work: Callable[..., T], *arguments: Any) -> T:
        """In a thread of its own: to split a long prompt into tokens takes a while."""
        return await asyncio.get_running_loop().run_in_executor(encoding, work, *arguments)

    async def respond(request: ChatRequest | CompletionRequest, work: Work, form: Form, http: Request) -> Response:
        metrics.prompt_tokens.inc(sum(map(len, work.prompts)))
        if request.stream:
            options = request.stream_options
            return streamed(engine, work, form, bool(options and options.include_usage))
        return await answered(engine, work, form, http)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: _EVENTS, **_ERRORS})
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        _check_model(served, request.model)
        prompt = await encoded(chat_prompt, served, request)
        wish = chat_wish(served, request, prompt)
        form = ChatForm(About.new("chatcmpl", served.name, wish.logprobs is not None))
        return await respond(request, Work([prompt], request.n or 1, wish), form, http)

    @app.post("/v1/completions", response_model=Completion, responses={200: _EVENTS, **_ERRORS})
    async def completions(request: CompletionRequest, http: Request) -> Response:
        """Continue texts."""
        _check_model(served, request.model)
        prompts = await encoded(completion_prompts, served, request)
        wish = completion_wish(served, request, prompts)
        form = CompletionForm(About.new("cmpl", served.name, wish.logprobs is not None))
        return await respond(request, Work(prompts, request.n or 1, wish), form, http)

    card = ModelCard(id=served.name, object="model", created=int(time.time()), owned_by="kinfolk")

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> ModelList:
        """What is served."""
        return ModelList(object="list", data=[card])

    @app.get("/v1/models/{model:path}", responses=_ERRORS)
    async def one_model(model: str) -> ModelCard:
        """One of them."""
        _check_model(served, model)
        return card

    @app.get("/health", responses=_ERRORS)
    async def health() -> Health:
        """Whether requests are answered."""
        if not engine.alive:
            raise ApiError(503, "the thread that generates has ended", kind="server_error")
        return Health(status="ok")

    @app.get("/metrics", response_class=Response, responses={200: _METRICS, **_ERRORS})
    async def measured() -> Response:
        """Counters in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _name_model(app, served.name)
    return app


def _check_model(served: Served, name: str) -> None:
    if name != served.name:
        raise ApiError(
            404, f"there is no model {name!r} here, only {served.name!r}", param="model", code="model_not_found"
        )


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form, whoever raises it."""

    def body_of(error: ApiError) -> Response:
        return JSONResponse(error.body.model_dump(), error.status, error.headers)

    @app.exception_handler(ApiError)
    async def _own(_: Request, error: ApiError) -> Response:
        return body_of(error)

    @app.exception_handler(RequestValidationError)
    async def _body(_: Request, error: RequestValidationError) -> Response:
        return body_of(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return body_of(ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def _other(_: Request, __: Exception) -> Response:
        return body_of(failed())


def _name_model(app: FastAPI, name: str) -> None:
    """Have the schema tell the only id that requests can name."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        for request in (ChatRequest, CompletionRequest):
            schema["components"]["schemas"][request.__name__]["properties"]["model"]["enum"] = [name]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
