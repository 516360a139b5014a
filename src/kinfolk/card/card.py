"""What every model card holds; one renderer turns it into README.md, whoever made the checkpoint."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

import kinfolk
from kinfolk.card.marker import signed

if TYPE_CHECKING:
    from jinja2 import Environment

Relation = Literal["finetune", "merge", "quantized", "adapter"]
"""How a model comes from its base models, in the words that the hub has."""


@dataclass(frozen=True)
class Table:
    """Rows under headings; every cell is text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """A section: Markdown, then tables."""

    text: str = ""
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Result:
    """One measured figure, as the hub's model-index has it."""

    dataset: str
    """Identifier of what it was measured on: that of the hub, where it is there."""
    dataset_name: str
    """The same for people."""
    metric: str
    """Identifier of the metric, such as bits_per_byte."""
    metric_name: str
    value: float
    settings: dict[str, float | int | str | list[float]] = field(default_factory=dict)
    """How it was measured, and its interval."""


@dataclass(frozen=True)
class Facts:
    """The metadata that others decide: what the family file states, or the card of the model that this one is from."""

    license: str | None = None
    """An identifier of the hub, or "other"."""
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    """ISO 639 codes."""


@dataclass(frozen=True)
class Card:
    """A model card."""

    title: str
    summary: str
    """One paragraph of Markdown."""
    tags: tuple[str, ...]
    is_language_model: bool = True
    library: str = "transformers"
    facts: Facts = Facts()
    datasets: tuple[str, ...] = ()
    """Names of data sets on the hub."""
    bases: tuple[str, ...] = ()
    """Names of repositories on the hub."""
    relation: Relation | None = None
    properties: tuple[tuple[str, str], ...] = ()
    """What it is, as names and values."""
    measured: tuple[Result, ...] = ()
    """For machines; `results` says the same to people."""
    results: Part | None = None
    lineage: Part | None = None
    data: Part | None = None
    compute: Part | None = None
    limits: tuple[str, ...] = ()
    usage: str = ""
    """Code in Python."""
    built: Part | None = None


def render(card: Card) -> str:
    """README.md of a checkpoint. The same card gives the same text."""
    from kinfolk.card.metadata import metadata

    text = (
        _environment()
        .get_template("card.md.jinja")
        .render(card=card, metadata=metadata(card), kinfolk_version=kinfolk.__version__)
    )
    # Parts that are left out leave no holes.
    return signed(re.sub(r"\n{3,}", "\n\n", text))


def load_code(place: str | None) -> str:
    """How a stock checkpoint is loaded, from a repository of the hub or from its folder."""
    name = place or "path/to/this/folder"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    )


def hashes(what: str, checkpoints: Sequence[tuple[str, dict[str, str]]]) -> Table:
    """The files that something was made from, as (name, SHA-256 by file name)."""
    rows = [(name, file, f"`{digest}`") for name, files in checkpoints for file, digest in files.items()]
    return Table((what, "file", "SHA-256"), tuple(rows))


def cell(text: object) -> str:
    """Text that cannot end a cell or a row of a table.

    >>> cell("a|b\\nc")
    'a\\\\|b c'
    """
    return " ".join(str(text).split()).replace("|", "\\|")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kinfolk.card"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment
