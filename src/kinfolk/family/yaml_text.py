"""YAML files as users write them: every fault becomes a KinfolkError that names the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import shown


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
    except _DuplicateKeyError as error:
        where = f"{origin}, line {error.problem_mark.line + 1}" if error.problem_mark else origin
        raise KinfolkError(str(error.problem), where=where, fix="keep one of them") from None
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


class _DuplicateKeyError(yaml.MarkedYAMLError):
    """Two values for one field, of which YAML would silently keep the last."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys, and whose merge keys (`<<: *anchor`) cannot be nested into a flood."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"{shown(key.value)} is given twice, first in line {lines[key.value]}"
                raise _DuplicateKeyError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            node.value = list({key.value: (key, value) for key, value in node.value}.values())
