"""Loss of a causal model on documents, in nats per token and in bits per byte.

Bits per byte, -sum ln p / (ln 2 * UTF-8 bytes), is the one loss that compares across tokenizers. It is only defined
where the tokens stand for the whole text, so lossy tokenizers are refused. Windowing moves either figure by several
percent and is therefore part of the result.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import ratio_interval
from kinfolk.evaluate.head import Predictor, check_context, predictor, token_losses
from kinfolk.evaluate.windows import Document, Window, batches, check_windowing, stacked, windows_of_documents
from kinfolk.train.engine import Engine, alone

_Scored = tuple[int, int, NDArray[np.float64]]
"""Of a window: its document, its place in it, and the losses of its tokens in nats."""


@dataclass(frozen=True)
class Score:
    """Loss on a set of documents, and how it was measured."""

    loss: float
    """Mean over scored tokens, in nats."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    tokens: int
    """Tokens scored, each once: all tokens of the documents, but no separator."""
    bytes: int
    """UTF-8 bytes of the original text."""
    documents: int
    stride: int
    context_length: int
    bits_per_byte_low: float | None
    """The 5th percentile of bits per byte over a bootstrap of documents; None for fewer than five documents."""
    bits_per_byte_high: float | None
    """The 95th percentile."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a perplexity beyond floating point becomes None."""
        values = asdict(self)
        return values if math.isfinite(self.perplexity) else values | {"perplexity": None}


@dataclass(frozen=True)
class DocumentLosses:
    """The loss of every scored token, by document; documents without one are left out."""

    nats: dict[int, NDArray[np.float64]]
    """By the document's place among all, from 0: the loss of its tokens (tokens,) in nats, in their order."""
    sizes: dict[int, int]
    """UTF-8 bytes of the same documents."""
    stride: int
    context_length: int

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return sum(len(losses) for losses in self.nats.values())


def score(
    model: PreTrainedModel,
    documents: Iterable[Document],
    separator: int | None,
    context_length: int,
    device: torch.device | str,
    stride: int | None = None,
    batch_windows: int = 16,
    progress: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> Score:
    """Score `documents` with `model`, which lies on `device`, in the precision of its weights and without autocast.

    A document is `separator` (context, never scored) and its tokens; it is cut into windows of `context_length` inputs
    that begin `stride` apart (default: half of the context), the last one filled backwards. Each token is scored once,
    by the first window that holds it. Without a separator the first token of each document is not scored although its
    bytes count, which flatters bits per byte a little. Documents without a token to score are left out. `batch_windows`
    windows run at a time; `progress` is told the tokens scored so far.

    With an `engine` its processes share the windows, and all of them call this with the same documents; the model is
    spread over them (`Engine.spread`). The score is that of one process.

    Raises KinfolkError for an impossible stride or context, token ids that the model does not have, documents without
    bytes, nothing to score, and a loss that is not finite.
    """
    return summary(
        document_losses(model, documents, separator, context_length, device, stride, batch_windows, progress, engine)
    )


def document_losses(
    model: PreTrainedModel,
    documents: Iterable[Document],
    separator: int | None,
    context_length: int,
    device: torch.device | str,
    stride: int | None = None,
    batch_windows: int = 16,
    progress: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> DocumentLosses:
    """The loss of every token of `documents`: what `score` is the summary of, with the same arguments and errors."""
    stride = max(1, context_length // 2) if stride is None else stride
    check_windowing(context_length, stride, batch_windows)
    check_context(model, context_length)
    engine = engine or alone()
    mine: list[_Scored] = []
    sizes: dict[int, int] = defaultdict(int)
    tokens = 0
    with evaluation_mode(model), torch.inference_mode():
        source = predictor(model)
        windows = windows_of_documents(documents, separator, context_length, stride, source.vocab_size)
        for dealt in _dealt(batches(windows, source.rows_at_once(context_length, batch_windows)), engine.world_size):
            # Blocks of the model are gathered for each batch: who gets none computes one that another has as well.
            batch = dealt[min(engine.rank, len(dealt) - 1)]
            losses = _window_losses(source, batch, device)
            if engine.rank < len(dealt):
                mine += [(each.document, each.place, found) for each, found in zip(batch, losses, strict=True)]
            for window in (window for batch in dealt for window in batch):
                sizes[window.document] += window.bytes
                tokens += window.scored
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise KinfolkError("there is no token to score", fix="give at least one document that is not empty")
    parts: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    for document, place, found in (each for part in engine.gather(mine) for each in part):
        parts[document].append((place, found))
    nats = {document: in_order(parts[document]) for document in sorted(parts)}
    return DocumentLosses(nats, {document: sizes[document] for document in nats}, stride, context_length)


def _dealt(batches: Iterable[list[Window]], count: int) -> Iterator[list[list[Window]]]:
    """Batches in hands of so many, the last of which may be smaller."""
    left = iter(batches)
    while hand := list(islice(left, count)):
        yield hand


def summary(losses: DocumentLosses) -> Score:
    """Loss, perplexity and bits per byte over all documents. KinfolkError for a loss that is not finite."""
    nats = np.array([part.sum() for part in losses.nats.values()])
    sizes = np.array(list(losses.sizes.values()), dtype=np.int64)
    total = float(nats.sum())
    if not math.isfinite(total):
        raise KinfolkError("the model's loss is not finite", fix="use a checkpoint from before the run diverged")
    loss = total / losses.tokens
    low, high = ratio_interval(nats / math.log(2), sizes)
    return Score(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=total / (math.log(2) * int(sizes.sum())),
        tokens=losses.tokens,
        bytes=int(sizes.sum()),
        documents=len(nats),
        stride=losses.stride,
        context_length=losses.context_length,
        bits_per_byte_low=low,
        bits_per_byte_high=high,
    )


def in_order(parts: list[tuple[int, NDArray[np.float64]]]) -> NDArray[np.float64]:
    """What windows found out about their tokens (..., tokens), in the order of the document."""
    return np.concatenate([found for _, found in sorted(parts, key=lambda part: part[0])], axis=-1)


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Document]:
    """Yield the token ids of each text, without special tokens, and its UTF-8 bytes.

    Raises KinfolkError where decoding does not give the text back: its bits per byte would not be defined.
    """
    for index, text in enumerate(texts):
        where = f"document {index + 1}"
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise KinfolkError(
                f"character {error.start} is half of a surrogate pair and has no UTF-8 form",
                where=where,
                fix="repair the text: it was decoded wrongly",
            ) from error
        # "<|endoftext|>" in an article on tokenizers is text, and does not end the document.
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if decoded != text:
            raise KinfolkError(
                f"the tokenizer loses text, and bits per byte is not defined for it: {_difference(text, str(decoded))}",
                where=where,
                fix="use a lossless tokenizer (byte-level, without lower-casing or Unicode normalisation)",
            )
        yield np.asarray(ids, dtype=np.int64), size


def held_out_documents(store: TokenStore) -> Iterator[Document]:
    """Yield the documents of a store's held-out part, without their separators."""
    starts = store.held_out_documents.starts
    ends = [*starts[1:], len(store.held_out)]
    for start, end, size in zip(starts, ends, store.held_out_documents.bytes, strict=True):
        yield store.held_out[start + 1 : end], int(size)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)


def _window_losses(source: Predictor, batch: list[Window], device: torch.device | str) -> list[NDArray[np.float64]]:
    """Loss in nats of the scored positions of each window."""
    rows = stacked(batch, device)
    # Only what is scored goes through the head: with a stride of half the context that is half of the positions.
    losses = token_losses(source.states(rows.inputs)[rows.scored], source.weight, rows.counted).cpu()
    return [part.numpy() for part in torch.split(losses, [window.scored for window in batch])]


def _difference(text: str, decoded: str) -> str:
    """The first place where two texts differ, in words."""
    place = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), None)
    if place is None:
        place = min(len(text), len(decoded))
    begin = max(0, place - 10)
    return f"character {place}, {text[begin : place + 10]!r} comes back as {decoded[begin : place + 10]!r}"
