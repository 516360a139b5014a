"""What is wrong with a family file, in the words of the file: the field, the problem, and what to write instead."""

import difflib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError


class MisfitError(ValueError):
    """A fault found by a validator: the `field` below the place that it looked at, the problem, and a fix.

    >>> str(MisfitError("head_dim 15 is odd", field="head_dim", fix="use 16"))
    'head_dim 15 is odd: use 16'
    """

    def __init__(self, problem: str, *, fix: str, field: str = "") -> None:
        super().__init__(f"{problem}: {fix}")
        self.problem = problem
        self.fix = fix
        self.field = field


class Fault(NamedTuple):
    """One fault of a family file. `field` is a path such as members[1].shape.head_dim, or empty for the whole."""

    field: str
    problem: str
    fix: str


def first_fault(error: ValidationError, root: type[BaseModel]) -> Fault:
    """The first of pydantic's complaints about a document of model `root`, in words.

    A field is often missing because its name was mistyped; then the mistyped one is the fault.
    """
    faults = error.errors()
    first = faults[0]
    if first["type"] == "missing":
        siblings = [fault for fault in faults if fault["loc"][:-1] == first["loc"][:-1]]
        first = next((fault for fault in siblings if fault["type"] == "extra_forbidden"), first)
    place, kind, given = first["loc"], first["type"], first.get("input")
    misfit = first.get("ctx", {}).get("error")
    if isinstance(misfit, MisfitError):
        path = field_path(place)
        return Fault(
            f"{path}.{misfit.field}" if path and misfit.field else path or misfit.field, misfit.problem, misfit.fix
        )
    if kind == "extra_forbidden":
        name, known = str(place[-1]), _fields_at(root, place[:-1])
        return Fault(field_path(place), f"unknown field {shown(name)}", did_you_mean(name, known, "fields known here"))
    if kind == "missing":
        return Fault(field_path(place), "is missing", f"add {place[-1]}")
    if kind == "invalid_key":
        return Fault(field_path(place[:-1]), f"the key {shown(given)} is not text", "use the name of a field as key")
    problem, fix = _in_words(kind, first.get("ctx", {}), given, str(first["msg"]))
    return Fault(field_path(place), problem, fix)


def field_path(location: Iterable[int | str]) -> str:
    """A place as users write it; the branch of a union is no part of it.

    >>> field_path(("data", "train", 0, "PathSource", "path"))
    'data.train[0].path'
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{shown(step)}]"
        elif not _is_branch(step):
            name = step if step.isprintable() and len(step) <= 60 else shown(step)
            path += f".{name}" if path else name
    return path


def did_you_mean(given: str, known: Iterable[str], heading: str) -> str:
    """The known name closest to a mistyped one, or all of them.

    >>> did_you_mean("sead", ["seed", "steps"], "known")
    'did you mean seed?'
    >>> did_you_mean("colour", ["seed", "steps"], "known")
    'known: seed, steps'
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {close[0]}?" if close else f"{heading}: {', '.join(names)}"


def shown(value: Any, limit: int = 60) -> str:
    """A value as Python writes it, cut off where it would be long.

    >>> shown("x" * 100, limit=8), shown(16**5000)
    ("'xxxxxxx...", 'a number of thousands of digits')
    """
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[:limit]}..."


def _in_words(kind: str, context: dict[str, Any], given: Any, message: str) -> tuple[str, str]:
    """Problem and fix for pydantic's kinds of errors (https://docs.pydantic.dev/latest/errors/validation_errors/)."""
    bound = next((context[key] for key in ("gt", "ge", "lt", "le") if key in context), None)
    limits = {
        "greater_than": "more than",
        "greater_than_equal": "at least",
        "less_than": "less than",
        "less_than_equal": "at most",
    }
    if kind in limits:
        side = "small" if kind.startswith("greater") else "large"
        return (
            f"{shown(given)} is too {side}",
            f"use {limits[kind]} {bound if isinstance(bound, int) else format(bound, 'g')}",
        )
    if kind == "finite_number":
        return f"{shown(given)} is not a finite number", "write a number such as 20 or 1.5e9"
    if kind == "int_parsing_size":
        return f"{shown(given)} is too large", "use a whole number below 1e18"
    if kind.startswith("int_"):
        return f"a whole number is wanted here, not {_kind_of(given)}", _whole_number(given)
    if kind.startswith("float_"):
        return f"a number is wanted here, not {_kind_of(given)}", "write a number such as 20 or 1.5e9"
    if kind.startswith("bool_"):
        return f"true or false is wanted here, not {_kind_of(given)}", "write true or false"
    if kind.startswith("string_type"):
        quoted = isinstance(given, int | float)
        fix = f'write it in quotes: "{shown(given)}"' if quoted else "write a text"
        return f"a text is wanted here, not {_kind_of(given)}", fix
    if kind == "string_pattern_mismatch":
        fix = "use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        return f"{shown(given)} is no name of a folder", fix
    if kind == "literal_error":
        choices = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"{shown(given)} is not known here", did_you_mean(str(given), choices, "use one of")
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return f"a mapping of fields is wanted here, not {_kind_of(given)}", "write fields as `name: value`"
    if kind in {"list_type", "tuple_type"}:
        return f"a list is wanted here, not {_kind_of(given)}", "write it as [first, second]"
    if kind == "one_of":
        return message, str(context["fix"])
    if kind == "too_short":
        return "the list is too short", f"give at least {context['min_length']}"
    if kind == "too_long":
        return "the list is too long", f"give at most {context['max_length']}"
    return message, "see examples/ for the layout"


def _kind_of(given: Any) -> str:
    if given is None:
        return "nothing"
    if isinstance(given, dict):
        return "a mapping"
    return "a list" if isinstance(given, list) else shown(given)


def _whole_number(given: Any) -> str:
    """What to write for a float or a text that means a whole number."""
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = math.isfinite(number) and abs(number) < 1e15
    return f"write {round(number)}" if whole else "write a whole number such as 4096"


def _is_branch(step: int | str) -> bool:
    """Whether a step of pydantic's is the branch of a union, which is tagged with the name of its model.

    Field names are in lower case; a user's unknown field that looks like a branch is only dropped from a message.
    """
    if not isinstance(step, str):
        return False
    return step.startswith(("literal[", "list[", "constrained-float")) or (
        step.endswith(("Source", "Tokenizer")) and step[:1].isupper()
    )


def _fields_at(root: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Names of the fields of the model that sits at `location` of a document."""
    models = [root]
    for step in location:
        if isinstance(step, int):
            continue
        if _is_branch(step):
            models = [model for model in models if model.__name__ == step] or models
            continue
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
