"""Demonstrations as tokens: dialogues rendered and encoded, each token marked as response or not."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError
from kinfolk.transfer.dialogues import Dialogue, read_dialogues
from kinfolk.transfer.template import ChatTemplate, Span

TooLong = Literal["refuse", "cut"]

_AT_ONCE = 512
"""Dialogues that are encoded together; the tokenizers library spreads them over the cores."""


@dataclass(frozen=True)
class Demonstration:
    """One dialogue in tokens."""

    ids: NDArray[np.int32]
    """(tokens,)"""
    response: NDArray[np.bool_]
    """(tokens,): the responses with the end of their turns, which are what is learned."""

    @property
    def scored(self) -> int:
        """Response tokens that something stands before, so that they can be predicted."""
        return int(self.response[1:].sum())


@dataclass(frozen=True)
class Demonstrations:
    """A set of demonstrations in the order of its file."""

    items: tuple[Demonstration, ...]
    cut: int = 0
    """How many were cut to the longest length allowed."""
    left_out: int = 0
    """How many had no response left after that."""
    lengths: NDArray[np.int64] = field(init=False)
    """Tokens of each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.array([len(item.ids) for item in self.items], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def tokens(self) -> int:
        """Tokens of all."""
        return int(self.lengths.sum())

    @property
    def scored(self) -> int:
        """Response tokens of all."""
        return sum(item.scored for item in self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return int(self.lengths.max())

    def digest(self) -> str:
        """SHA-256 of all tokens and marks, in order."""
        found = hashlib.sha256()
        for item in self.items:
            found.update(np.int64(len(item.ids)).tobytes() + item.ids.tobytes() + item.response.tobytes())
        return found.hexdigest()

    def counts(self) -> dict[str, int]:
        """What the ledger says of them."""
        return {
            "demonstrations": len(self),
            "tokens": self.tokens,
            "response_tokens": self.scored,
            "longest": self.longest,
            "cut": self.cut,
            "left_out": self.left_out,
        }


def read_demonstrations(
    path: Path,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    too_long: TooLong = "refuse",
    progress: Callable[[int], None] = lambda done: None,
) -> Demonstrations:
    """All demonstrations of a file; `longest` is the most tokens that one may have, at least 2.

    A longer one is refused, or cut at its end; one that is left without a response by that is left out. Raises
    KinfolkError, with file and line, for whatever is wrong with a line.
    """
    items: list[Demonstration] = []
    cut = left_out = 0
    encode = _Encoder(tokenizer)
    for dialogues in _parts(read_dialogues(path)):
        rendered = [template.render(dialogue) for dialogue in dialogues]
        for dialogue, item in zip(dialogues, encode(dialogues, rendered), strict=True):
            if len(item.ids) > longest:
                if too_long == "refuse":
                    raise KinfolkError(
                        f"{len(item.ids)} tokens, where {longest} are the most",
                        where=dialogue.where,
                        fix="shorten the text, or cut what is too long by --too-long cut",
                    )
                cut += 1
                item = Demonstration(item.ids[:longest], item.response[:longest])
            if item.scored:
                items.append(item)
            else:
                left_out += 1
        progress(len(items) + left_out)
    if not items:
        raise KinfolkError(
            f"no demonstration has a response within the first {longest} tokens",
            where=str(path),
            fix="give shorter demonstrations, or a model with a longer context",
        )
    return Demonstrations(tuple(items), cut, left_out)


def split_by_hash(whole: Demonstrations, share: float, where: str) -> tuple[Demonstrations, Demonstrations]:
    """Training and held-out demonstrations: about `share` of them are held out, by a hash of their tokens.

    The same demonstration always falls on the same side, also when it comes twice or in another file. KinfolkError
    where either side would be empty.
    """
    sides: tuple[list[Demonstration], list[Demonstration]] = ([], [])
    for item in whole.items:
        number = int.from_bytes(hashlib.sha256(b"held-out" + item.ids.tobytes()).digest()[:8])
        sides[number < share * 2**64].append(item)
    if not all(sides):
        raise KinfolkError(
            f"of {len(whole)} demonstrations a share of {share:g} leaves {len(sides[0])} to train on and "
            f"{len(sides[1])} to hold out",
            where=where,
            fix="give more of them, another --held-out-share, or a file by --held-out",
        )
    return Demonstrations(tuple(sides[0]), whole.cut, whole.left_out), Demonstrations(tuple(sides[1]))


def repeated(held_out: Demonstrations, train: Demonstrations) -> int:
    """How many held-out demonstrations are among those of training too."""
    known = {item.ids.tobytes() for item in train.items}
    return sum(item.ids.tobytes() in known for item in held_out.items)


class _Encoder:
    """Texts with spans into tokens with marks.

    A tokenizer that joins (every byte-level BPE) encodes the stretches between and inside of responses one by one, so
    that a prompt has the tokens that it has when there is no response yet, and no token reaches over an edge. Of any
    other (SentencePiece puts a space before every text) the whole is encoded, and its tokens are told by their place.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        untyped: Any = tokenizer
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise KinfolkError(
                "a tokenizer in Python code, which is not supported",
                where=str(tokenizer.name_or_path),
                fix="use one that has a tokenizer.json",
            )
        self._backend = Tokenizer.from_str(untyped.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._joins = self._decoded("one\n", "two") == "one\ntwo"

    def __call__(
        self, dialogues: Sequence[Dialogue], rendered: Sequence[tuple[str, list[Span]]]
    ) -> Iterator[Demonstration]:
        if not self._joins:
            encodings = self._backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
            for dialogue, (_, spans), encoding in zip(dialogues, rendered, encodings, strict=True):
                yield _marked(encoding, spans, dialogue.where)
            return
        stretches = [_stretches(text, spans) for text, spans in rendered]
        texts = [text for parts in stretches for text, _ in parts]
        encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        for parts in stretches:
            ids: list[int] = []
            response: list[bool] = []
            for _, is_response in parts:
                found = next(encoded).ids
                ids += found
                response += [is_response] * len(found)
            yield Demonstration(np.array(ids, dtype=np.int32), np.array(response, dtype=np.bool_))

    def _decoded(self, *texts: str) -> str:
        ids = [each for text in texts for each in self._backend.encode(text, add_special_tokens=False).ids]
        decoded: str = self._backend.decode(ids, skip_special_tokens=False)
        return decoded


def _stretches(text: str, spans: list[Span]) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each is a response.

    >>> _stretches("ask. answer!", [(5, 12)])
    [('ask. ', False), ('answer!', True)]
    """
    pieces, done = [], 0
    for start, end in spans:
        pieces += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [(piece, mark) for piece, mark in [*pieces, (text[done:], False)] if piece]


def _marked(encoding: Any, spans: list[Span], where: str) -> Demonstration:
    """A whole text's tokens with the marks of the spans that they lie in; KinfolkError for one that lies across."""
    response = np.zeros(len(encoding.ids), dtype=np.bool_)
    for start, end in spans:
        for index, (begin, stop) in enumerate(encoding.offsets):
            if stop <= start or begin >= end:
                continue
            if begin < start or stop > end:
                raise KinfolkError(
                    "the tokenizer makes one token of the edge between a response and what is beside it",
                    where=where,
                    fix="use a template that puts a line end or a special token there, or strip spaces from the text",
                )
            response[index] = True
    return Demonstration(np.array(encoding.ids, dtype=np.int32), response)


def _parts(dialogues: Iterable[Dialogue]) -> Iterator[list[Dialogue]]:
    part: list[Dialogue] = []
    for dialogue in dialogues:
        part.append(dialogue)
        if len(part) == _AT_ONCE:
            yield part
            part = []
    if part:
        yield part
