"""A law in a file: JSON of one pydantic model, alone or under "law" in what a fit printed."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json

Law = TypeVar("Law", bound=BaseModel)


def read_law(path: Path, model: type[Law], fix: str) -> Law:
    """The law in a file. KinfolkError, with `fix`, naming the field where the file holds something else."""
    try:
        document = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise KinfolkError(f"cannot be read ({error.strerror})", where=str(path), fix=fix) from error
    except ValueError as error:
        raise KinfolkError("this is not JSON", where=str(path), fix=fix) from error
    if isinstance(document, dict) and isinstance(document.get("law"), dict):
        document = document["law"]
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise KinfolkError(f"{field}: {first['msg']}", where=str(path), fix=fix) from error
