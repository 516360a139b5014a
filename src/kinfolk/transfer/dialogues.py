"""Demonstrations as people write them: one dialogue on each line of a JSON file, as chat or as prompt and response."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfolk.data.formats import read_rows
from kinfolk.errors import KinfolkError

EXAMPLE = '{"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
"""Names of fields that hold a prompt and its response; the first pair that a row has is taken. With `instruction`, a
text in `input` follows it after an empty line."""

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Dialogue:
    """Messages, each with role and content, of which the last is the assistant's; where they stand in which file."""

    where: str
    messages: tuple[dict[str, str], ...]


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """Yield the dialogues of a .jsonl file (also .gz, .bz2, .zst); KinfolkError, with file and line, for its faults.

    A row holds `messages` ({"role", "content"}), `conversations` ({"from", "value"}, as ShareGPT does), or a prompt and
    its response under one of the names in `PAIRS`.
    """
    number = None
    for number, row in read_rows(path, str(path), EXAMPLE):
        where = f"{path}:{number}"
        yield Dialogue(where, tuple(_checked(_messages(row, where), where)))
    if number is None:
        raise KinfolkError("the file holds no demonstrations", where=str(path), fix=f"write {EXAMPLE} on each line")


def _messages(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    for field, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if field in row:
            return _chat(row[field], field, role, content, where)
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            prompt, response = _text(row, asked, where), _text(row, answered, where)
            if asked == "instruction" and row.get("input"):
                prompt = f"{prompt}\n\n{_text(row, 'input', where)}"
            return [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": response}]
    found = ", ".join(sorted(map(str, row))[:8]) or "none at all"
    raise KinfolkError(
        f"no messages, and no prompt with its response; the fields are {found}", where=where, fix=f"write {EXAMPLE}"
    )


def _chat(turns: Any, field: str, role: str, content: str, where: str) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise KinfolkError(f"`{field}` is no list of messages", where=where, fix=f"write {EXAMPLE}")
    messages = []
    for index, turn in enumerate(turns):
        place = f"{where}: {field}[{index}]"
        if not isinstance(turn, dict):
            raise KinfolkError("not a message", where=place, fix=f'write {{"{role}": ..., "{content}": ...}}')
        named = _text(turn, role, place)
        messages.append({"role": _SHAREGPT_ROLES.get(named, named), "content": _text(turn, content, place)})
    return messages


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise KinfolkError(f"there is no {field!r}", where=where, fix=f"add {field!r}")
    text = row[field]
    if not isinstance(text, str):
        raise KinfolkError(
            f"{field!r} holds {type(text).__name__}, not text", where=where, fix="write plain text there"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise KinfolkError(
            f"{field!r} holds half of a surrogate pair at character {error.start}", where=where, fix="mend the text"
        ) from error
    return text


def _checked(messages: list[dict[str, str]], where: str) -> list[dict[str, str]]:
    """The messages, if they are something to learn from."""
    for index, message in enumerate(messages):
        if not message["role"].strip():
            raise KinfolkError("a message without a role", where=f"{where}: message {index + 1}", fix="name its role")
        if message["role"] == ASSISTANT and not message["content"].strip():
            raise KinfolkError(
                "an empty response", where=f"{where}: message {index + 1}", fix="write the response, or remove the line"
            )
    if messages[-1]["role"] != ASSISTANT:
        raise KinfolkError(
            f"the last message is the {messages[-1]['role']}'s, so that there is nothing to learn from it",
            where=where,
            fix="end with a message of the role assistant, or remove the line",
        )
    if messages[0]["role"] == ASSISTANT:
        raise KinfolkError(
            "the first message is the assistant's, so that nothing asks for it",
            where=where,
            fix="begin with a message of the role user or system",
        )
    return messages
