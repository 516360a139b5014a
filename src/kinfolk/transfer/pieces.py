"""What bytes each token of a tokenizer stands for: the common ground of two vocabularies.

Compared are bytes, never the marks ("Ġ", "▁") by which tokenizers write spaces.
"""

import codecs
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kinfolk.data.tokenizer import document_encoder, vocabulary_size
from kinfolk.errors import KinfolkError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_PROBES = ("a", "The cat, 3 times.", "  two\n\nlines\t", "naïve 学校 🦆")


@dataclass(frozen=True)
class Pieces:
    """A tokenizer as bytes.

    `encoder` is its `document_encoder`. `bytes_of[id]` are the bytes of a token, None for special tokens and ids that
    no text is made of. `prefix` is what the tokenizer puts before every text (b" " for many SentencePiece
    vocabularies), and is not of the text.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: Any
    bytes_of: tuple[bytes | None, ...]
    prefix: bytes

    @cached_property
    def id_of(self) -> dict[bytes, int]:
        """The smallest id of each byte string."""
        return {piece: index for index, piece in reversed(list(enumerate(self.bytes_of))) if piece}

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of special tokens by their text."""
        return {
            str(token): index
            for index, token in cast(Any, self.tokenizer).added_tokens_decoder.items()
            if self.bytes_of[index] is None
        }

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are read as ordinary text, and none is added."""
        return list(self.encoder.encode(text, add_special_tokens=False).ids) if text else []

    def text_of(self, content: bytes, unfinished: bool = True) -> tuple[str, bool]:
        """The longest text that bytes from the beginning of a text are, and whether a split character is left over.

        Bytes that can never become UTF-8 are read as U+FFFD. With `unfinished` False so is a character that is cut off.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(content.removeprefix(self.prefix), final=not unfinished)
        return text, bool(decoder.getstate()[0])


def pieces_of(tokenizer: PreTrainedTokenizerBase, where: str = "tokenizer") -> Pieces:
    """Read the bytes of every token off a tokenizer.

    Raises KinfolkError for tokenizers that are no byte-level or byte-fallback BPE, and for those that change text
    (lower-case it, drop spaces): their tokens do not spell what they were made from.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unreadable(where, "it is written in Python code")
    content = json.loads(backend.to_str())
    decoders = _kinds(content.get("decoder"))
    if "ByteLevel" in decoders:
        spell = _spell_byte_level
    elif "ByteFallback" in decoders or "Metaspace" in decoders:
        spell = _spell_sentence_piece
    else:
        raise _unreadable(where, f"its decoder is {', '.join(decoders) or 'missing'}")
    added = {entry["id"]: entry for entry in content.get("added_tokens", [])}
    found: list[bytes | None] = [None] * vocabulary_size(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index not in added:
            found[index] = spell(token)
        elif not added[index]["special"]:
            found[index] = added[index]["content"].encode()
    pieces = Pieces(tokenizer, document_encoder(tokenizer), tuple(found), b"")
    first = _joined(pieces, _PROBES[0])
    pieces = replace(pieces, prefix=b" " if first.startswith(b" ") else b"")
    for probe in _PROBES:
        if _joined(pieces, probe) != pieces.prefix + probe.encode():
            raise _unreadable(where, f"it does not give back {probe!r}")
    return pieces


def _joined(pieces: Pieces, text: str) -> bytes:
    return b"".join(pieces.bytes_of[index] or b"" for index in pieces.encode(text))


def _kinds(decoder: Any) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    return [str(decoder["type"]), *(kind for part in decoder.get("decoders", []) for kind in _kinds(part))]


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


def _spell_byte_level(token: str) -> bytes | None:
    """The bytes of a token in GPT-2's alphabet, None where it is not written in it."""
    if not all(character in _BYTE_OF for character in token):
        return None
    return bytes(_BYTE_OF[character] for character in token)


def _spell_sentence_piece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _unreadable(where: str, why: str) -> KinfolkError:
    return KinfolkError(
        f"the bytes of its tokens cannot be read off this tokenizer: {why}",
        where=where,
        fix="use a byte-level or byte-fallback BPE that keeps text as it is",
    )
