"""Values of a family file changed in place: every other byte of it, comments and layout too, stays as it is.

PyYAML's parser says where a value lies in the text. What comes out is parsed again and must be what was meant.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kinfolk.errors import KinfolkError
from kinfolk.family.yaml_text import parse_yaml

Place = tuple[str | int, ...]
"""Of a field: the keys of mappings, and indexes of lists that are there, from the top."""

Value = str | float


def with_values(text: str, values: Mapping[Place, Value], origin: str) -> str:
    """The YAML `text` with fields set; those that are missing in a mapping are added, those that are so are left.

    KinfolkError for a text in which that cannot be done without touching more, such as a field that is an alias.
    """
    refused = KinfolkError(
        f"{', '.join('.'.join(map(str, place)) for place in values)} cannot be set without touching more of the file",
        where=origin,
        fix="write these fields there plainly, without anchors and aliases, and try again",
    )
    changed = text
    try:
        meant = _unshared(parse_yaml(text))
        for place, value in values.items():
            if not _same(_at(meant, place), value):
                changed = _with_value(changed, place, value)
                _set(meant, place, value)
        found = parse_yaml(changed)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise refused from error
    if found != meant:
        raise refused
    return changed


def _unshared(value: Any) -> Any:
    """A copy in which what an alias repeats is there twice, so that setting one shows that the text sets both."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def absolute_paths(text: str, folder: Path) -> dict[Place, Value]:
    """The relative paths in a family file in `folder`, made absolute, so that it means the same elsewhere."""
    document = parse_yaml(text)
    found: dict[Place, Value] = {
        place: str(folder / Path(value).expanduser())
        for place, value in _sources(document.get("data"), ("data",))
        if not Path(value).expanduser().is_absolute()
    }
    load = _at(document, ("tokenizer", "load"))
    if isinstance(load, str) and (folder / load).is_dir():
        found["tokenizer", "load"] = str(folder / load)
    return found


def _sources(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every `path` below a place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path" and isinstance(inner, str):
                yield (*place, key), inner
            else:
                yield from _sources(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _sources(inner, (*place, index))


def _at(document: Any, place: Place) -> Any:
    for key in place:
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and isinstance(key, int):
            document = document[key]
        else:
            return None
    return document


def _same(found: Any, value: Value) -> bool:
    """Whether a field is so already; PyYAML reads 1e-3 as a text."""
    try:
        return found == value or (isinstance(value, float) and float(found) == value)
    except (TypeError, ValueError):
        return False


def _set(document: Any, place: Place, value: Value) -> None:
    """Set a field of a parsed file; a plain value on the way gives way to a mapping."""
    for key in place[:-1]:
        if isinstance(document, dict) and not isinstance(document.get(key), dict | list):
            document[key] = {}
        document = document[key]
    document[place[-1]] = value


def _with_value(text: str, place: Place, value: Value) -> str:
    node = yaml.compose(text, yaml.SafeLoader)
    for depth, key in enumerate(place):
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
            continue
        if not isinstance(node, yaml.MappingNode):
            # A plain value, such as `auto`, or nothing: it becomes a mapping with the rest of the place.
            assert node is not None
            return _replaced(text, node, _flow(place[depth:], value))
        inner = next((each for name, each in node.value if name.value == key), None)
        if inner is None:
            return _inserted(text, node, f"{key}: {_flow(place[depth + 1 :], value)}")
        node = inner
    assert node is not None
    return _replaced(text, node, _plain(value))


def _flow(place: Sequence[str | int], value: Value) -> str:
    """A value below so many keys, on one line.

    >>> _flow(("schedule", "end_ratio"), 0.0)
    '{schedule: {end_ratio: 0.0}}'
    """
    return _plain(value) if not place else f"{{{place[0]}: {_flow(place[1:], value)}}}"


def _plain(value: Value) -> str:
    """A value as YAML 1.1 reads it back, to which 1e-05 is a text; also between braces.

    >>> _plain(1e-05), _plain("1-sqrt"), _plain("/a,b")
    ('1.0e-05', '1-sqrt', '"/a,b"')
    """
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.safe_dump(value)).splitlines()[0]


def _replaced(text: str, node: yaml.Node, new: str) -> str:
    begin, end = node.start_mark.index, node.end_mark.index
    space = " " if text[begin - 1] == ":" else ""
    return text[:begin] + space + new + text[end:]


def _inserted(text: str, node: yaml.MappingNode, entry: str) -> str:
    """The text with an entry behind the last one of a mapping, in the mapping's own style."""
    end = _end(node.value[-1][1]) if node.value else node.start_mark.index + 1
    if node.flow_style:
        return text[:end] + (", " if node.value else "") + entry + text[end:]
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    return f"{text[:line_end]}\n{' ' * node.value[0][0].start_mark.column}{entry}{text[line_end:] or chr(10)}"


def _end(node: yaml.Node) -> int:
    """Where a value ends; a block ends where its last value does, and not at what follows it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
