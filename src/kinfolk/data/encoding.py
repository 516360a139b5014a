"""Documents stream through the tokenizer into files of token ids, a few megabytes at a time.

The tokenizers library spreads a batch over the cores by itself, but its threads share one cache of words behind one
lock, and two of them are hardly faster than one. Here every thread has a tokenizer of its own, which takes half of the
time on two cores (docs/results.md, section 10).
"""

import os
import re
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from kinfolk.cores import usable_cores
from kinfolk.data.formats import Document
from kinfolk.errors import KinfolkError

_PIECE = 256 * 1024
"""Characters that are encoded at once, of one long document or of many short ones."""
T = TypeVar("T")
R = TypeVar("R")

_LINE_START = re.compile(r"(?<=\S\n)(?=\w)")


class Part:
    """The training or the held-out half of a store while it is written. A context manager: leaving closes the files."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], separator: int) -> None:
        self.name, self.tokens, self.documents, self.bytes = name, 0, 0, 0
        self._dtype = dtype
        self._separator = np.array([separator], dtype).tobytes()
        self._tokens = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 (closed on leaving)
        self._documents = open(folder / f"{name}_documents.bin", "wb")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._documents.close()

    def begin_document(self, text_bytes: int) -> None:
        """Write the separator and note where the document starts."""
        self._documents.write(np.array([self.tokens, text_bytes], "<i8").tobytes())
        self._tokens.write(self._separator)
        self.tokens, self.documents, self.bytes = self.tokens + 1, self.documents + 1, self.bytes + text_bytes

    def add(self, ids: list[int]) -> None:
        """Write token ids of the document that was begun last."""
        self._tokens.write(np.array(ids, self._dtype).tobytes())
        self.tokens += len(ids)

    def counts(self) -> dict[str, int]:
        """Tokens with separators, documents, and UTF-8 bytes of text."""
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}


@dataclass(frozen=True)
class _Piece:
    """A document, or a stretch of a long one; `document_bytes` is that of the whole, at its first piece only."""

    text: str
    document: str
    held_out: bool
    document_bytes: int | None


def encode_corpus(
    documents: Iterator[tuple[Document, bool]],
    new_encoder: Callable[[], Any],
    train: Part,
    held_out: Part,
    progress: Callable[[int], None],
    where: str,
) -> None:
    """Write every document to `train` or, where its flag says so, to `held_out`.

    `new_encoder` makes a `tokenizers.Tokenizer`, one for each core; `progress` is told the bytes of text done. Memory
    holds a few megabytes of text and its tokens. KinfolkError, with `where`, if the tokens of a held-out document do
    not give its text back: bits per byte would count bytes that the model never had to predict. (Unicode normal forms
    may differ.)
    """
    own = threading.local()

    def begin() -> None:
        own.encoder = new_encoder()

    def encode(batch: list[_Piece]) -> list[tuple[_Piece, list[int]]]:
        encodings = own.encoder.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        encoded = [(piece, encoding.ids) for piece, encoding in zip(batch, encodings, strict=True)]
        for piece, ids in encoded:
            if piece.held_out:
                _check_lossless(piece, own.encoder.decode(ids, skip_special_tokens=False), where)
        return encoded

    done = 0
    batches = _batches(_pieces(documents, _cuts_at_lines(new_encoder())))
    with _without_library_threads():
        for encoded in _in_threads(encode, batches, begin):
            for piece, ids in encoded:
                part = held_out if piece.held_out else train
                if piece.document_bytes is not None:
                    part.begin_document(piece.document_bytes)
                    done += piece.document_bytes
                part.add(ids)
            progress(done)


@contextmanager
def _without_library_threads() -> Iterator[None]:
    """Have the tokenizers library encode in the thread that asks; it reads this variable with every batch."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        # Said aloud where nobody has: otherwise a process that forks later switches the threads off, noisily.
        os.environ["TOKENIZERS_PARALLELISM"] = before or "true"


def _in_threads(work: Callable[[T], R], items: Iterator[T], begin: Callable[[], None]) -> Iterator[R]:
    """`work` on every item, by a thread for each core, in order, a few items ahead of what is taken."""
    threads = usable_cores()
    pool = ThreadPoolExecutor(threads, "kinfolk-encoding", begin)
    ahead: deque[Future[R]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(documents: Iterator[tuple[Document, bool]], cut: bool) -> Iterator[_Piece]:
    for document, held_out in documents:
        text, start = document.text, 0
        size: int | None = len(text.encode("utf-8"))
        while size is not None or start < len(text):
            found = _LINE_START.search(text, start + _PIECE) if cut else None
            end = found.start() if found else len(text)
            yield _Piece(text[start:end], document.id, held_out, size)
            start, size = end, None


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.text)
        if length >= _PIECE:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _cuts_at_lines(encoder: Any) -> bool:
    """Whether a text cut before a line that begins with a word gives the same tokens as the whole.

    It does for every byte-level BPE; it does not where each text gets a space in front (SentencePiece), and such a
    tokenizer is given whole documents, however long.
    """
    lines = ("Once upon a time.\n", "There was a mill,\n", "and 2 ravens\n", "7 more")
    parts = [i for line in lines for i in encoder.encode(line, add_special_tokens=False).ids]
    return bool(parts == encoder.encode("".join(lines), add_special_tokens=False).ids)


def _check_lossless(piece: _Piece, decoded: str, where: str) -> None:
    if decoded == piece.text:
        return
    before, after = (unicodedata.normalize("NFC", text) for text in (piece.text, decoded))
    if before != after:
        raise KinfolkError(
            f"the tokenizer is lossy: it changes the text of the document {piece.document}",
            where=where,
            fix="use one that keeps every character, for example a byte-level BPE",
        )
