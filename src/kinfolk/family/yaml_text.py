"""YAML files as users write them: every fault becomes a KinfolkError that names the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import shown

_MOST_VALUES = 1_000_000
"""Keys, items and scalars of a text with its aliases written out."""


def read_text(file: str, missing: KinfolkError) -> str:
    """The text of a file; KinfolkError for one that cannot be read, and `missing` where there is none."""
    try:
        if not Path(file).is_file():
            raise missing
        return Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise KinfolkError(f"byte {error.start} is not UTF-8", where=file, fix="save the file as UTF-8 text") from None
    except OSError as error:
        raise KinfolkError(
            f"cannot be read: {error.strerror}", where=shown(file, 200), fix="give the path of a readable YAML file"
        ) from None


def parse_mapping(text: str, origin: str, layout: str) -> dict[str, Any]:
    """The mapping in a YAML text; `layout` says what a file like it begins with. KinfolkError for anything else."""
    try:
        document = parse_yaml(text)
    except _RefusedError as error:
        raise KinfolkError(error.said, where=f"{origin}, line {error.line}", fix=error.fix) from None
    except RecursionError:
        raise KinfolkError("nested too deeply", where=origin, fix=layout) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise KinfolkError(f"not YAML: {problem}", where=where, fix=layout) from None
    if not isinstance(document, dict):
        raise KinfolkError("holds no mapping of fields", where=origin, fix=layout)
    return document


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises YAMLError, ValueError (impossible dates, numbers, tags) or RecursionError."""
    try:
        return yaml.load(text, _Loader)
    except (KeyError, IndexError, AttributeError) as error:  # what PyYAML makes of `!!bool maybe` and the like
        raise ValueError("a value is not what its tag says") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a text has when every alias in it is written out; many, where one holds itself."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # until it is known
        within = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for each in within for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


class _RefusedError(yaml.YAMLError):
    """What is YAML, and still not taken."""

    def __init__(self, said: str, node: yaml.Node, fix: str) -> None:
        super().__init__(said)
        self.said, self.line, self.fix = said, node.start_mark.line + 1, fix


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and floods: aliases of aliases, or merge keys (`<<: *anchor`) in a row."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            said = f"with its aliases written out it has more than {_MOST_VALUES:,} values, or no end"
            raise _RefusedError(said, node, "write it without aliases of aliases")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                said = f"{shown(key.value)} is given twice, first in line {lines[key.value]}"
                raise _RefusedError(said, key, "keep one of them")
            lines[key.value] = key.start_mark.line + 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            node.value = list({key.value: (key, value) for key, value in node.value}.values())
