"""What a member of a run makes of each document that its run holds out: little enough to keep, enough to compare."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from kinfolk.data.tokens import open_store
from kinfolk.evaluate import cache
from kinfolk.evaluate.load import quiet
from kinfolk.evaluate.loss import held_out_documents
from kinfolk.evaluate.measure import Progress, load, quietly
from kinfolk.evaluate.text import Text, text_of


@dataclass(frozen=True)
class DocumentBits:
    """By the document's place among all that are held out, from 0; documents without a token are left out."""

    bits: dict[int, float]
    sizes: dict[int, int]
    """UTF-8 bytes."""

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(self.bits.values()) / sum(self.sizes.values())


def document_bits(member: Path, run: Path, progress: Progress = quietly) -> tuple[DocumentBits, bool]:
    """The bits that a member needs for each held-out document of `run`, and whether that was known from before.

    In windows of the context that the member was made for, as when it was built. KinfolkError for whatever is wrong
    with the checkpoint or the data.
    """
    text = Text(run=run)

    def compute() -> dict[str, Any]:
        with quiet():
            losses = load(str(member)).losses(text, None, None, progress)
        return {
            "bits": {str(place): float(nats.sum()) / math.log(2) for place, nats in losses.nats.items()},
            "sizes": {str(place): size for place, size in losses.sizes.items()},
        }

    checkpoint = cache.checkpoint_digest(str(member))
    found, known = cache.remembered("document_bits", [checkpoint], {"text": text.digest()}, compute)
    bits, sizes = ({int(place): value for place, value in found[name].items()} for name in ("bits", "sizes"))
    return DocumentBits(bits, sizes), known


def document_digests(run: Path) -> list[str]:
    """SHA-256 of the text of every document that a run holds out, whatever its tokenizer."""
    store = open_store(run / "data")
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer, trust_remote_code=False)
    return [hashlib.sha256(text_of(tokenizer, ids).encode()).hexdigest() for ids, _ in held_out_documents(store)]
