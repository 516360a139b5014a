"""What models are evaluated on: the held-out documents of a run, or text files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk.data.tokens import open_store
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import read_text
from kinfolk.evaluate.loss import encode_documents, held_out_documents
from kinfolk.evaluate.windows import Document
from kinfolk.files import sha256


@dataclass(frozen=True)
class Text:
    """Either the held-out documents of `run`, or `files`, each of which is one document."""

    files: tuple[Path, ...] = ()
    run: Path | None = None

    def documents(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
        """Token ids and bytes of each document. KinfolkError for files that are no text, and for lossy tokenizers."""
        if self.run is None:
            return encode_documents(tokenizer, [read_text(file) for file in self.files])
        store = open_store(self.run / "data")
        written_with = AutoTokenizer.from_pretrained(store.tokenizer, trust_remote_code=False)
        if tokenizer.get_vocab() == written_with.get_vocab():
            return held_out_documents(store)
        return encode_documents(tokenizer, (text_of(written_with, ids) for ids, _ in held_out_documents(store)))

    def digest(self) -> str:
        """SHA-256 over what the documents are made from."""
        if self.run is None:
            parts = [hashlib.sha256(read_text(file).encode()).hexdigest() for file in self.files]
        else:
            folder = open_store(self.run / "data").tokenizer.parent
            held_out = [folder / name for name in ("held_out.bin", "held_out_documents.bin")]
            parts = [sha256(path) for path in (*held_out, *sorted((folder / "tokenizer").iterdir()))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_of(model: str) -> Path | None:
    """The run directory that a member lies in, if it does."""
    run = Path(model).resolve().parent.parent
    return run if (run / "data" / "data.json").is_file() else None


def text_for(models: list[str], files: list[Path], run: Path | None) -> Text:
    """The text that all of these models are evaluated on: what is given, or else what their runs hold out.

    KinfolkError where nothing is given and a model is no member of a run, or their runs hold out different documents.
    """
    if files and run is not None:
        raise KinfolkError("--text and --run are both given", fix="choose what to evaluate on")
    if files or run is not None:
        return Text(tuple(files), run)
    texts: dict[str, Text] = {}
    for model in models:
        if not Path(model).exists():
            raise KinfolkError("there is no such folder", where=model, fix="give a run directory or a checkpoint")
        found = run_of(model)
        if found is None:
            raise KinfolkError(
                f"{model} is not a member of a run, so it is not clear what to evaluate it on",
                fix="give --text FILE, or --run DIR for the held-out documents of a run",
            )
        text = Text(run=found)
        texts.setdefault(text.digest(), text)
    if len(texts) > 1:
        runs = " and ".join(str(text.run) for text in texts.values())
        raise KinfolkError(
            f"the models come from runs that hold out different documents: {runs}",
            fix="say what to evaluate all of them on: --run DIR or --text FILE",
        )
    return next(iter(texts.values()))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: NDArray[Any]) -> str:
    """The text of a stored document, byte for byte."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
