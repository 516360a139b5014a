"""From a family file, or a preset's name, to a validated `Family`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.family.auto import without_auto
from kinfolk.family.data import LoadedTokenizer, PathSource, Source
from kinfolk.family.faults import Fault, did_you_mean, first_fault, shown
from kinfolk.family.spec import Family
from kinfolk.family.yaml_text import parse_mapping, parse_yaml, read_text

_LAYOUT = "begin with `name:` and `members:`; see examples/"


@dataclass(frozen=True)
class LoadedFamily:
    """A family, what to call its origin in messages, and the folder that its relative paths start from."""

    family: Family
    origin: str
    folder: Path
    auto_schedule: bool = False
    """Whether the file leaves the schedule to the build; until that has chosen, the family has the usual one."""


def preset_names() -> list[str]:
    """Names of the presets that come with kinfolk."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def load_family(file_or_preset: str, overrides: Sequence[str] = ()) -> LoadedFamily:
    """Read and validate a family file or preset; `overrides` are `field.path=value` with the value in YAML.

    Raises KinfolkError naming file, field and a fix.
    """
    text, origin, folder = family_text(file_or_preset)
    document = parse_mapping(text, origin, _LAYOUT)
    if isinstance(document, dict) and {"stages", "total_flops"} <= document.keys():
        raise KinfolkError(
            "this is a plan, which follows from a family file and is made anew from it",
            where=origin,
            fix="edit the family file: a run's family.yaml, that of `kinfolk plan --write`, or `family_file` in here",
        )
    for override in overrides:
        _apply(document, override)
    document, is_auto = without_auto(document)
    return LoadedFamily(validate_family(document, origin, overrides), origin, folder, is_auto)


def family_text(file_or_preset: str) -> tuple[str, str, Path]:
    """The text of a family file or preset, its name in messages, and the folder that its relative paths start from."""
    if file_or_preset in preset_names():
        text = (_presets() / f"{file_or_preset}.yaml").read_text("utf-8")
        return text, f"{file_or_preset}.yaml (preset)", Path.cwd()
    missing = KinfolkError(
        f"no family file {shown(file_or_preset, 200)} and no preset of that name",
        fix=did_you_mean(file_or_preset, preset_names(), "give the path of a YAML file, or one of the presets"),
    )
    return read_text(file_or_preset, missing), file_or_preset, Path(file_or_preset).absolute().parent


def parse_family(text: str, origin: str) -> Family:
    """The family in a YAML text; KinfolkError as from `load_family`."""
    return validate_family(parse_mapping(text, origin, _LAYOUT), origin)


def validate_family(document: Any, origin: str, overrides: Sequence[str] = ()) -> Family:
    """Validate a parsed family file; the first fault becomes a KinfolkError that names the field and a fix.

    `overrides` are those that were applied: one that touches the faulty part of the file is named as well.
    """
    try:
        family = Family.model_validate(document)
        fault = _too_few_rows(family)
    except ValidationError as error:
        fault = first_fault(error, Family)
    if fault is None:
        return family
    part = re.split(r"[.\[]", fault.field)[0]
    blamed = "".join(
        f" with --set {_cut(override)}" for override in overrides if re.split(r"[.=]", override)[0] == part
    )
    where = f"{origin}{blamed}: {fault.field}" if fault.field else origin
    raise KinfolkError(fault.problem, where=where, fix=fault.fix)


def _too_few_rows(family: Family) -> Fault | None:
    """A trained tokenizer with more entries than the models have rows; a loaded one is checked when it is loaded."""
    if isinstance(family.tokenizer, LoadedTokenizer) or family.embedding_rows >= family.tokenizer.vocab_size:
        return None
    entries = family.tokenizer.vocab_size
    problem = f"{family.embedding_rows} rows are too few for the tokenizer's {entries} entries"
    return Fault("model.vocab_size", problem, f"use {entries} or more, or leave it out")


def dump_family(family: Family) -> str:
    """The family as YAML, every field spelled out."""
    return yaml.safe_dump(family.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def _presets() -> Any:
    return resources.files("kinfolk.family") / "presets"


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one field of the parsed file in place; list elements are addressed by their index."""
    where = f"--set {_cut(override)}"
    path, equals, value = override.partition("=")
    steps = path.split(".")
    if not equals or not all(steps):
        raise KinfolkError("sets nothing", where=where, fix="write it as recipe.seed=3")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise KinfolkError(f"{shown(value)} is not a YAML value", where=where, fix="put it in quotes") from None
    target: Any = document
    for depth, step in enumerate(steps):
        is_last = depth == len(steps) - 1
        if isinstance(target, list):
            key: Any = _list_index(target, step, where)
        elif isinstance(target, dict):
            key = step
            if not is_last and target.get(step) is None:
                target[step] = {}
        else:
            raise KinfolkError(
                f"{'.'.join(steps[:depth])} is a plain value, without fields", where=where, fix="set it as a whole"
            )
        if is_last:
            target[key] = parsed
        else:
            target = target[key]


def _cut(override: str) -> str:
    return override if len(override) <= 80 and override.isprintable() else shown(override, 80)


def _list_index(values: list[Any], step: str, where: str) -> int:
    if re.fullmatch("[0-9]{1,9}", step) and int(step) < len(values):
        return int(step)
    indexes = f"use an index from 0 to {len(values) - 1}" if values else "set the list as a whole"
    raise KinfolkError(f"{shown(step)} is not an index of a list of {len(values)}", where=where, fix=indexes)


def with_absolute_paths(loaded: LoadedFamily) -> Family:
    """The family with its relative paths made absolute, so that a copy of the file elsewhere means the same."""

    def absolute(source: Source) -> Source:
        if isinstance(source, PathSource):
            return source.model_copy(update={"path": str(loaded.folder / Path(source.path).expanduser())})
        return source

    family = loaded.family
    held_out = family.data.held_out.model_copy(
        update={"sources": [absolute(source) for source in family.data.held_out.sources]}
    )
    versions = [
        version.model_copy(update={"train": [absolute(source) for source in version.train]})
        for version in family.data.versions
    ]
    train = [absolute(source) for source in family.data.train]
    data = family.data.model_copy(update={"train": train, "held_out": held_out, "versions": versions})
    update: dict[str, Any] = {"data": data}
    if isinstance(family.tokenizer, LoadedTokenizer) and (loaded.folder / family.tokenizer.load).is_dir():
        update["tokenizer"] = LoadedTokenizer(load=str(loaded.folder / family.tokenizer.load))
    return family.model_copy(update=update)


def first_difference(recorded: str, wanted: str) -> str | None:
    """The first field in which two dumped families differ, as "field: was X, is now Y"; None if they agree."""
    before, after = (dict(_leaves(yaml.safe_load(text), "")) for text in (recorded, wanted))
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            return f"{field} was {before.get(field)!r} and is now {after.get(field)!r}"
    return None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
