"""What can be asked: the fields of OpenAI's two requests, with their types and limits.

Strict: a number in quotes is no number. A field that is unknown is refused, and so is one that is known but not
supported, unless its value asks for nothing.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kinfolk.serve.limits import LONGEST_STOP, MOST_CHOICES, MOST_FIELDS, MOST_MESSAGES, MOST_PARTS, MOST_STOPS


def _whole(value: Any) -> Any:
    """To JSON 16.0 is an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(values: Any) -> Any:
    """At once, as there may be a hundred thousand."""
    return [_whole(value) for value in values] if isinstance(values, list) else values


def _not_true(value: bool) -> bool:
    if value:
        raise PydanticCustomError("unsupported", "it can only be false")
    return value


def _few(entries: Any) -> Any:
    """As for `_Strict`."""
    if isinstance(entries, dict) and len(entries) > MOST_FIELDS:
        raise PydanticCustomError("entries", "it has more than {most} entries", {"most": MOST_FIELDS})
    return entries


def _encodable(text: str) -> str:
    """JSON can write half of a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("no_text", "it holds half of a surrogate pair") from None
    return text


def _conflict(param: str, message: str) -> PydanticCustomError:
    """Of fields that are right each by itself."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "param": param})


Tokens = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
No = Annotated[bool, AfterValidator(_not_true), Field(json_schema_extra={"const": False})]
Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES)]
Ids = Annotated[list[TokenId], Field(fail_fast=True, min_length=1), BeforeValidator(_all_whole)]
Zero = Annotated[float, Field(ge=0, le=0)]
_Ignored = Annotated[Text, Field(description="Ignored.")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, value: Any) -> Any:
        """Before each of them becomes an error of its own."""
        if isinstance(value, dict) and len(value) > MOST_FIELDS:
            raise PydanticCustomError("fields", "it has more than {most} fields", {"most": MOST_FIELDS})
        return value


class StreamOptions(_Strict):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool, Field(description="Ignored.")] | None = None


class _Request(_Strict):
    """What both requests have."""

    model: Annotated[Text, Field(description="The served model's id.")]
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token.")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), BeforeValidator(_whole)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), BeforeValidator(_whole)] | None = None
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: _Ignored | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0), BeforeValidator(_few)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _conflict("stream_options", "stream_options is only for stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(_Strict):
    """A part of a message's content; only text."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=MOST_PARTS)]
    name: _Ignored | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it; to them a developer is the system."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": text}


class TextFormat(_Strict):
    """Plain text, the only format of an answer."""

    type: Literal["text"]


class ChatRequest(_Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[None], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: No | None = None
    parallel_tool_calls: Annotated[bool, Field(description="Ignored.")] | None = None
    metadata: (
        Annotated[dict[str, Text], Field(max_length=MOST_FIELDS, description="Ignored."), BeforeValidator(_few)] | None
    ) = None
    service_tier: _Ignored | None = None
    safety_identifier: _Ignored | None = None
    prompt_cache_key: _Ignored | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise _conflict("max_tokens", "max_tokens and max_completion_tokens are both given")
        if self.top_logprobs is not None and not self.logprobs:
            raise _conflict("top_logprobs", "top_logprobs is only for logprobs: true")
        return self


class CompletionRequest(_Request):
    """POST /v1/completions"""

    prompt: Text | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES)]
    logprobs: Annotated[int, Field(ge=0, le=5), BeforeValidator(_whole)] | None = None
    best_of: Annotated[int, Field(ge=1, description="Only as n."), BeforeValidator(_whole)] | None = None
    echo: No | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _best_of_all(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _conflict("best_of", "best_of is not supported: leave it out, or give the same as n")
        return self
