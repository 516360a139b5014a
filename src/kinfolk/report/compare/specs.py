"""What differs in the family files of several families, field by field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldDifference:
    """One field that is not the same in all."""

    field: str
    values: tuple[str | None, ...]
    """As text, in the order of the families; None where the field is missing."""


def spec_differences(specs: Sequence[Mapping[str, Any]]) -> list[FieldDifference]:
    """The fields that differ, in the order of the files; members and other named parts are matched by name."""
    flat = [dict(_leaves(spec, "")) for spec in specs]
    fields = dict.fromkeys(field for leaves in flat for field in leaves)
    found = [FieldDifference(field, tuple(leaves.get(field) for leaves in flat)) for field in fields]
    return [difference for difference in found if len(set(difference.values)) > 1]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every field with its value as text.

    >>> list(_leaves({"members": [{"name": "small", "layers": 2}], "betas": [0.9, 0.95]}, ""))
    [('members[small].layers', '2'), ('betas', '[0.9, 0.95]')]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            name = inner.get("name") if isinstance(inner, Mapping) else None
            rest = {key: part for key, part in inner.items() if key != "name"} if name is not None else inner
            yield from _leaves(rest, f"{path}[{index if name is None else name}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
