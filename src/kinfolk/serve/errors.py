"""Errors as OpenAI's API writes them: {"error": {"message", "type", "param", "code"}}.

Two come from uvicorn and not from here, as plain text and past the gate: the 503 beyond its connections, and the 400
for what is no HTTP.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from kinfolk.serve.limits import MOST_STOPS


class ErrorContent(BaseModel):
    """What was wrong: in words, as a kind, in which field, and as a code that programs know."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer of the application that is no success."""

    error: ErrorContent


class ApiError(Exception):
    """A request that is answered by an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = ErrorBody(
            error=ErrorContent(message=_sendable(message), type=kind, param=param and _sendable(param), code=code)
        )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that could never be answered as it is."""
    return ApiError(400, message, param=param, code=code)


def failed() -> ApiError:
    """The server's own fault; what it was stands in the server's log, not in the answer."""
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error")


NO_EFFECT_ONLY = {
    "presence_penalty": "0",
    "frequency_penalty": "0",
    "logit_bias": "{}",
    "response_format": '{"type": "text"}',
    "tools": "[]",
    "tool_choice": '"none" or "auto"',
    "modalities": '["text"]',
    "store": "false",
    "echo": "false",
    "suffix": "null",
}
"""Fields that are not supported, and the one value of each that asks for nothing."""


FORMS = {
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists",
    "stop": f"a string, or a list of up to {MOST_STOPS} of them",
    "content": "a string, or a list of text parts",
}
"""What a field can be that may be of several types."""


def of_validation(errors: Sequence[Any]) -> ApiError:
    """What pydantic found first, in which field it is, and what was expected there."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    if first["type"] == "conflict":
        return invalid(first["msg"], first["ctx"]["param"])
    if first["type"] == "extra_forbidden":
        *parent, name = first["loc"]
        param = f"{_path(parent)}.{name}".removeprefix(".")
        return invalid(f"the field {param} is not supported", param, "unsupported_parameter")
    param = _path(first["loc"])
    if not param and first["type"] in ("missing", "model_attributes_type"):
        return invalid("the body must be a JSON object, sent with Content-Type: application/json")
    if not param:
        return invalid(f"the body: {first['msg']}")
    top, last = re.split(r"[.\[]", param)[0], re.split(r"[.\]]", param)[-1]
    if top in NO_EFFECT_ONLY:
        only = NO_EFFECT_ONLY[top]
        return invalid(f"{top} is not supported: leave it out, or give {only}", top, "unsupported_parameter")
    if first["type"] == "missing":
        return invalid(f"the field {param} is missing", param)
    if last not in FORMS:
        return invalid(f"{param}: {first['msg']}", param)
    # One error for each type that was tried; the one that has more to say than that it is another type is wanted.
    tried = [error for error in errors if _path(error["loc"]).startswith(param)]
    wanted = next((error for error in tried if not error["type"].endswith("_type")), None)
    if wanted is None:
        return invalid(f"{param}: it should be {FORMS[last]}", param)
    return invalid(f"{_path(wanted['loc'])}: {wanted['msg']}", _path(wanted["loc"]))


_FIELD = re.compile(r"(?!(str|int|float|bool|none)$)[a-z_]+")
"""A field's name, not one of the types of a union that pydantic puts into a path."""


def _path(location: Sequence[str | int]) -> str:
    """A place in the body as in `messages[0].content`.

    >>> _path(("body", "messages", 0, "content", "list[TextPart]", 1, "text"))
    'messages[0].content[1].text'
    """
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _FIELD.fullmatch(part):
            path += f".{part}" if path else part
    return path


def _sendable(text: str) -> str:
    """Without lone surrogates, which cannot be written in UTF-8, and of bounded length."""
    return text[:1000].encode("utf-8", "replace").decode("utf-8")
