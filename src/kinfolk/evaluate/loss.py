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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.head import Predictor, check_context, predictor, token_losses

Document = tuple[NDArray[Any], int]
"""Token ids of one document without separator, and the UTF-8 bytes of the text that they stand for."""

_FEWEST_DOCUMENTS = 5
"""Below this a bootstrap over documents says nothing."""
_RESAMPLES = 1000
_POOLED_BATCHES = 32
"""Windows of this many batches are sorted by length together: little padding, and little memory."""


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


def score(
    model: PreTrainedModel,
    documents: Iterable[Document],
    separator: int | None,
    context_length: int,
    device: torch.device | str,
    stride: int | None = None,
    batch_windows: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score `documents` with `model`, which lies on `device`, in the precision of its weights and without autocast.

    A document is `separator` (context, never scored) and its tokens; it is cut into windows of `context_length` inputs
    that begin `stride` apart (default: half of the context), the last one filled backwards. Each token is scored once,
    by the first window that holds it. Without a separator the first token of each document is not scored although its
    bytes count, which flatters bits per byte a little. Documents without a token to score are left out. `batch_windows`
    windows run at a time; `progress` is told the tokens scored so far.

    Raises KinfolkError for an impossible stride or context, token ids that the model does not have, documents without
    bytes, nothing to score, and a loss that is not finite.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    _check_windowing(context_length, stride, batch_windows)
    check_context(model, context_length)
    nats: dict[int, float] = defaultdict(float)
    sizes: dict[int, int] = defaultdict(int)
    tokens = 0
    with evaluation_mode(model), torch.inference_mode():
        source = predictor(model)
        windows = _windows_of_documents(documents, separator, context_length, stride, source.vocab_size)
        for batch in _batches(windows, source.rows_at_once(context_length, batch_windows)):
            for window, loss in zip(batch, _window_losses(source, batch, torch.device(device)), strict=True):
                nats[window.document] += loss
                sizes[window.document] += window.bytes
                tokens += window.scored
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise KinfolkError("there is no token to score", fix="give at least one document that is not empty")
    order = sorted(nats)
    return _summary(
        np.array([nats[document] for document in order]),
        np.array([sizes[document] for document in order], dtype=np.int64),
        tokens,
        stride,
        context_length,
    )


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


def window_spans(predictions: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first, end) of the windows over `predictions` positions, where position t predicts token t + 1.

    A window reads the positions start..end and scores first..end. All windows are `context_length` long, but for a
    document that is shorter.
    """
    first = 0
    while first < predictions:
        end = min(first + (context_length if first == 0 else stride), predictions)
        yield max(0, end - context_length), first, end
        first = end


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


@dataclass(frozen=True)
class _Window:
    document: int
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    first: int
    """The first position of this window that it scores."""
    bytes: int
    """Of the document, in its first window; 0 in the others."""

    @property
    def scored(self) -> int:
        return len(self.inputs) - self.first


def _windows_of_documents(
    documents: Iterable[Document], separator: int | None, context_length: int, stride: int, vocab_size: int
) -> Iterator[_Window]:
    prefix = [] if separator is None else [separator]
    for index, (ids, size) in enumerate(documents):
        sequence = np.concatenate([np.asarray(prefix, dtype=np.int64), np.asarray(ids, dtype=np.int64)])
        _check_document(index, sequence, len(ids), size, vocab_size)
        for start, first, end in window_spans(len(sequence) - 1, context_length, stride):
            inputs, targets = sequence[start:end], sequence[start + 1 : end + 1]
            yield _Window(index, inputs, targets, first - start, size if first == 0 else 0)


def _check_document(index: int, sequence: NDArray[np.int64], tokens: int, size: int, vocab_size: int) -> None:
    where = f"document {index + 1}"
    if tokens and size < 1:
        raise KinfolkError(f"{tokens} tokens stand for {size} bytes", where=where, fix="count the bytes of the text")
    if len(sequence) and not 0 <= sequence.min() <= sequence.max() < vocab_size:
        odd = int(sequence.max() if sequence.max() >= vocab_size else sequence.min())
        raise KinfolkError(
            f"token id {odd} is not among the model's {vocab_size}",
            where=where,
            fix="encode with the tokenizer that the model was trained with",
        )


def _batches(windows: Iterable[_Window], size: int) -> Iterator[list[_Window]]:
    """Batches of windows of nearly one length; the longest of a pool first, so that a lack of memory shows soon."""
    pool: list[_Window] = []
    for window in windows:
        pool.append(window)
        if len(pool) == size * _POOLED_BATCHES:
            yield from _sorted_batches(pool, size)
            pool = []
    yield from _sorted_batches(pool, size)


def _sorted_batches(pool: list[_Window], size: int) -> Iterator[list[_Window]]:
    pool = sorted(pool, key=lambda window: -len(window.inputs))
    for start in range(0, len(pool), size):
        yield pool[start : start + size]


def _window_losses(source: Predictor, batch: list[_Window], device: torch.device) -> list[float]:
    """Summed loss in nats of the scored positions of each window."""
    length = max(len(window.inputs) for window in batch)
    inputs = np.zeros((len(batch), length), dtype=np.int64)
    targets = np.zeros_like(inputs)
    scored = np.zeros(inputs.shape, dtype=bool)
    for row, window in enumerate(batch):
        used = len(window.inputs)
        inputs[row, :used], targets[row, :used] = window.inputs, window.targets
        scored[row, window.first : used] = True
    mask = torch.from_numpy(scored).to(device)
    # Only what is scored goes through the head: with a stride of half the context that is half of the positions.
    states = source.states(torch.from_numpy(inputs).to(device))[mask]
    losses = token_losses(states, source.weight, torch.from_numpy(targets).to(device)[mask]).cpu()
    return [float(part.sum()) for part in torch.split(losses, [window.scored for window in batch])]


def _summary(
    nats: NDArray[np.float64], sizes: NDArray[np.int64], tokens: int, stride: int, context_length: int
) -> Score:
    total = float(nats.sum())
    if not math.isfinite(total):
        raise KinfolkError("the model's loss is not finite", fix="use a checkpoint from before the run diverged")
    loss = total / tokens
    low, high = _bootstrap(nats, sizes)
    return Score(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=total / (math.log(2) * int(sizes.sum())),
        tokens=tokens,
        bytes=int(sizes.sum()),
        documents=len(nats),
        stride=stride,
        context_length=context_length,
        bits_per_byte_low=low,
        bits_per_byte_high=high,
    )


def _bootstrap(nats: NDArray[np.float64], sizes: NDArray[np.int64]) -> tuple[float | None, float | None]:
    """A 90% percentile interval of bits per byte over documents: tokens of one document are not independent."""
    if len(nats) < _FEWEST_DOCUMENTS:
        return None, None
    generator = np.random.default_rng(0)
    ratios = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = generator.integers(0, len(nats), len(nats))
        ratios[resample] = nats[drawn].sum() / sizes[drawn].sum()
    low, high = np.percentile(ratios / math.log(2), [5, 95])
    return float(low), float(high)


def _difference(text: str, decoded: str) -> str:
    """The first place where two texts differ, in words."""
    place = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), None)
    if place is None:
        place = min(len(text), len(decoded))
    begin = max(0, place - 10)
    return f"character {place}, {text[begin : place + 10]!r} comes back as {decoded[begin : place + 10]!r}"


def _check_windowing(context_length: int, stride: int, batch_windows: int) -> None:
    if context_length < 1:
        raise KinfolkError(f"a context length of {context_length}", fix="use 1 or more")
    if not 1 <= stride <= context_length:
        raise KinfolkError(
            f"a stride of {stride} does not suit a context of {context_length}", fix=f"use 1 to {context_length}"
        )
    if batch_windows < 1:
        raise KinfolkError(f"batches of {batch_windows} windows", fix="use 1 or more")
