"""From a family file, or a preset's name, to a validated `Family`."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family, LoadedTokenizer, PathSource, Source


@dataclass(frozen=True)
class LoadedFamily:
    """A family, what to call its origin in messages, and the folder that its relative paths start from."""

    family: Family
    origin: str
    folder: Path


def preset_names() -> list[str]:
    """Names of the presets that come with kinfolk."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _presets().iterdir() if entry.name.endswith(".yaml"))


def load_family(file_or_preset: str, overrides: Sequence[str] = ()) -> LoadedFamily:
    """Read and validate a family file or preset; `overrides` are `field.path=value` with the value in YAML.

    Raises KinfolkError naming file, field and a fix.
    """
    if file_or_preset in preset_names():
        origin, folder = f"{file_or_preset}.yaml (preset)", Path.cwd()
        text = (_presets() / f"{file_or_preset}.yaml").read_text("utf-8")
    else:
        path = Path(file_or_preset)
        if not path.is_file():
            raise KinfolkError(
                f"no family file {file_or_preset!r} and no preset of that name",
                fix=f"give the path of a YAML file, or one of the presets {', '.join(preset_names())}",
            )
        origin, folder = str(path), path.resolve().parent
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise KinfolkError(
                f"byte {error.start} is not UTF-8", where=origin, fix="save the file as UTF-8 text"
            ) from None
    document = _parse(text, origin)
    for override in overrides:
        _apply(document, override)
    return LoadedFamily(validate_family(document, origin), origin, folder)


def validate_family(document: Any, origin: str) -> Family:
    """Validate a parsed family file; the first fault becomes a KinfolkError that names the field and a fix."""
    try:
        return Family.model_validate(document)
    except ValidationError as error:
        raise _explain(error, origin) from None


def dump_family(family: Family) -> str:
    """The family as YAML, every field spelled out."""
    return yaml.safe_dump(family.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def _presets() -> Any:
    return resources.files("kinfolk.family") / "presets"


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        raise KinfolkError(
            f"not YAML: {getattr(error, 'problem', None) or error}", where=where, fix="see examples/ for the layout"
        ) from None
    if not isinstance(document, dict):
        raise KinfolkError(
            "holds no mapping of fields", where=origin, fix="begin with `name:` and `members:`; see examples/"
        )
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one field of the parsed file in place; list elements are addressed by their index."""
    path, equals, value = override.partition("=")
    steps = path.split(".")
    if not equals or not all(steps):
        raise KinfolkError(f"{override!r} sets nothing", where="--set", fix="write it as recipe.seed=3")
    target: Any = document
    for depth, step in enumerate(steps[:-1]):
        if isinstance(target, list):
            target = target[_list_index(target, step, override)]
        elif isinstance(target, dict):
            if target.get(step) is None:
                target[step] = {}
            target = target[step]
        else:
            raise KinfolkError(f"{'.'.join(steps[:depth])} is a plain value", where=f"--set {override}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise KinfolkError(f"{value!r} is not a YAML value", where=f"--set {override}", fix="quote it") from None
    if isinstance(target, list):
        target[_list_index(target, steps[-1], override)] = parsed
    elif isinstance(target, dict):
        target[steps[-1]] = parsed
    else:
        raise KinfolkError(f"{'.'.join(steps[:-1])} is a plain value", where=f"--set {override}")


def _list_index(values: list[Any], step: str, override: str) -> int:
    if not step.isdecimal() or int(step) >= len(values):
        raise KinfolkError(
            f"{step!r} is not an index of a list of {len(values)}",
            where=f"--set {override}",
            fix=f"use 0 to {len(values) - 1}",
        )
    return int(step)


_UNION_BRANCHES = {
    "BuiltinSource",
    "PathSource",
    "HuggingFaceSource",
    "TrainedTokenizer",
    "LoadedTokenizer",
}


def _explain(error: ValidationError, origin: str) -> KinfolkError:
    """One clear error out of pydantic's list: the first one, or for a union the branch that fits best."""
    faults = error.errors()
    first = faults[0]
    same_place = [fault for fault in faults if fault["loc"][:1] == first["loc"][:1]]
    # In a union every branch complains; the branch whose keys were recognised is the one that the user meant.
    meant = [fault for fault in same_place if fault["type"] not in {"missing", "extra_forbidden"}]
    fault = (meant or same_place)[0] if any(set(f["loc"]) & _UNION_BRANCHES for f in same_place) else first
    field = _field_path(fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = _fields_at(fault["loc"][:-1])
        name = str(fault["loc"][-1])
        close = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {close[0]}?" if close else f"fields known here: {', '.join(known)}"
        return KinfolkError(f"unknown field {name!r}", where=f"{origin}: {field}", fix=fix)
    if fault["type"] == "missing":
        return KinfolkError("is missing", where=f"{origin}: {field}", fix=f"add {fault['loc'][-1]}")
    given = fault.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    problem, _, fix_text = message.rpartition(": use ")
    if problem:
        return KinfolkError(problem + shown, where=f"{origin}: {field}" if field else origin, fix=f"use {fix_text}")
    return KinfolkError(message + shown, where=f"{origin}: {field}" if field else origin)


def _field_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in _UNION_BRANCHES:
            path += f".{step}" if path else step
    return path


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that sits at `location` of the family file."""
    models: list[type[BaseModel]] = [Family]
    for step in location:
        if isinstance(step, int):
            continue
        if step in _UNION_BRANCHES:
            models = [model for model in models if model.__name__ == step] or models
            continue
        found: list[type[BaseModel]] = []
        for model in models:
            if step in model.model_fields:
                found += _models_in(model.model_fields[str(step)].annotation)
        models = found or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


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
    data = family.data.model_copy(
        update={"train": [absolute(source) for source in family.data.train], "held_out": held_out}
    )
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
