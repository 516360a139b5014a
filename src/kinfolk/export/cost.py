"""What a format costs: bytes, and loss on the same tokens as the original."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import ratio_interval
from kinfolk.evaluate.loss import DocumentLosses, summary


@dataclass(frozen=True)
class Cost:
    """A format beside the original: both read the same text in the same windows."""

    weight_bytes: int
    original_bytes: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    loss_difference: float
    """Of the format minus the original, paired by token."""
    loss_low: float | None
    loss_high: float | None
    """The 90 % interval over documents; None for fewer than five."""
    bits_per_byte_difference: float
    bits_per_byte_low: float | None
    bits_per_byte_high: float | None
    tokens: int
    bytes: int
    documents: int
    context_length: int
    stride: int


def compare(original: DocumentLosses, found: DocumentLosses, size: int, original_size: int) -> Cost:
    """What a format costs: differences over the same tokens, with their intervals over documents.

    KinfolkError where both did not score the same tokens, which a tokenizer of another kind would do.
    """
    same = original.sizes == found.sizes and all(
        len(nats) == len(found.nats.get(document, ())) for document, nats in original.nats.items()
    )
    if not same:
        raise KinfolkError(
            "the exported tokenizer splits the text in another way than the original",
            fix="report this with the tokenizer.json; the export was not written",
        )
    differences = np.array([found.nats[each].sum() - nats.sum() for each, nats in original.nats.items()])
    tokens = np.array([len(nats) for nats in original.nats.values()])
    sizes = np.array([original.sizes[document] for document in original.nats])
    now = summary(found)
    loss_low, loss_high = ratio_interval(differences, tokens)
    low, high = ratio_interval(differences / math.log(2), sizes)
    return Cost(
        weight_bytes=size,
        original_bytes=original_size,
        loss=now.loss,
        bits_per_byte=now.bits_per_byte,
        loss_difference=float(differences.sum() / tokens.sum()),
        loss_low=loss_low,
        loss_high=loss_high,
        bits_per_byte_difference=float(differences.sum() / math.log(2) / sizes.sum()),
        bits_per_byte_low=low,
        bits_per_byte_high=high,
        tokens=now.tokens,
        bytes=now.bytes,
        documents=now.documents,
        context_length=now.context_length,
        stride=now.stride,
    )


def weight_bytes(folder: Path) -> int:
    """Size of the files of weights."""
    return sum(path.stat().st_size for path in weights_of(folder))


def weights_of(folder: Path) -> list[Path]:
    """The files of weights."""
    return sorted((*folder.glob("*.safetensors"), *folder.glob("*.gguf")))
