"""How alike two models predict, on the same text: members of a family, versions of one, or any others.

Members of a progressively grown family are more alike than models trained on their own (Yano et al., arXiv
2504.00623, measure it by KL divergence between adjacent sizes).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import ratio_interval
from kinfolk.evaluate.divergence import Divergences, Head, divergences
from kinfolk.evaluate.head import Predictor, check_context, predictor
from kinfolk.evaluate.loss import evaluation_mode, in_order
from kinfolk.evaluate.windows import Document, batches, check_windowing, stacked, windows_of_documents

_ROWS = 8

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Consistency:
    """Means over tokens of how two models' next-token distributions differ."""

    kl_small_to_large: float
    """KL(small || large) in nats: the expectation is under the small model."""
    kl_large_to_small: float
    """KL(large || small) in nats."""
    top1_agreement: float
    """Share of tokens where both models rank the same token first."""
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def adjacent_kl(
    small: PreTrainedModel, large: PreTrainedModel, sequences: Tensor, device: torch.device | str
) -> Consistency:
    """Compare two models of one vocabulary, both on `device`, on sequences (batch, context + 1) of int64 token ids.

    The distributions after each of the first `context` tokens of a row are compared, that is after the inputs of a
    training sequence. Raises KinfolkError for different vocabularies, token ids outside them, sequences of the wrong
    shape, and divergences that are not finite.
    """
    if sequences.dim() != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise KinfolkError(
            f"sequences have the shape {tuple(sequences.shape)}", fix="give (batch, context + 1) with one row or more"
        )
    inputs = sequences[:, :-1]
    totals = torch.zeros(3, dtype=torch.float64)
    with evaluation_mode(small, large), torch.inference_mode():
        pair = predictor(small), predictor(large)
        _check_pair(pair, inputs)
        rows = min(source.rows_at_once(inputs.shape[1], _ROWS) for source in pair)
        for start in range(0, inputs.shape[0], rows):
            batch = inputs[start : start + rows].to(device)
            everywhere = torch.ones_like(batch, dtype=torch.bool)
            found = _divergences(pair, batch, everywhere, pair[0].vocab_size)
            totals += torch.stack([found.forward, found.backward, found.agreement]).sum(dim=1).cpu()
    _check_finite(totals)
    forward, backward, agreement = (totals / inputs.numel()).tolist()
    return Consistency(forward, backward, agreement, inputs.numel())


@dataclass(frozen=True)
class PositionDivergences:
    """What `Divergences` holds, of every scored token, by document; documents without one are left out."""

    values: dict[int, NDArray[np.float64]]
    """By the document's place among all, from 0: (5, tokens), in the order of the fields of `Divergences`."""

    @property
    def tokens(self) -> int:
        """Positions compared."""
        return sum(found.shape[1] for found in self.values.values())

    def field(self, name: str) -> list[NDArray[np.float64]]:
        """One field of `Divergences`, document by document (tokens,)."""
        place = list(Divergences.__dataclass_fields__).index(name)
        return [found[place] for found in self.values.values()]


def position_divergences(
    first: PreTrainedModel,
    second: PreTrainedModel,
    documents: Iterable[Document],
    separator: int | None,
    context_length: int,
    device: torch.device | str,
    stride: int | None = None,
    batch_windows: int = 8,
    progress: Callable[[int], None] | None = None,
) -> PositionDivergences:
    """Compare two models of one tokenizer, both on `device`, on `documents`, teacher-forced, at temperature 1.

    Windows are those of `score`: each token once, with the most context available. Where one model has more rows than
    the other, as padding makes it, both are normalised over the rows that both have. Raises KinfolkError as `score`
    does, and for divergences that are not finite.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    check_windowing(context_length, stride, batch_windows)
    for model in (first, second):
        check_context(model, context_length)
    parts: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    tokens = 0
    with evaluation_mode(first, second), torch.inference_mode():
        pair = predictor(first), predictor(second)
        entries = min(source.vocab_size for source in pair)
        windows = windows_of_documents(documents, separator, context_length, stride, entries)
        for batch in batches(windows, min(source.rows_at_once(context_length, batch_windows) for source in pair)):
            rows = stacked(batch, device)
            found = _divergences(pair, rows.inputs, rows.scored, entries).stacked().cpu()
            _check_finite(found)
            split = torch.split(found, [window.scored for window in batch], dim=1)
            for window, values in zip(batch, split, strict=True):
                parts[window.document].append((window.place, values.numpy()))
                tokens += window.scored
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise KinfolkError("there is no token to compare", fix="give at least one document that is not empty")
    return PositionDivergences({document: in_order(parts[document]) for document in sorted(parts)})


def statistics(documents: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Mean over tokens, its 90 % interval over documents, and quantiles over tokens, of a figure by document."""
    totals = np.array([values.sum() for values in documents])
    sizes = np.array([len(values) for values in documents])
    low, high = ratio_interval(totals, sizes)
    found = np.quantile(np.concatenate(documents), QUANTILES)
    return {
        "mean": float(totals.sum() / sizes.sum()),
        "low": low,
        "high": high,
        "quantiles": {f"{share:g}": float(value) for share, value in zip(QUANTILES, found, strict=True)},
    }


def share(documents: list[NDArray[np.float64]]) -> dict[str, Any]:
    """`statistics` of what is 0 or 1, whose quantiles say nothing."""
    return {name: value for name, value in statistics(documents).items() if name != "quantiles"}


def _divergences(pair: tuple[Predictor, Predictor], inputs: Tensor, scored: Tensor, entries: int) -> Divergences:
    first, second = (Head(source.states(inputs)[scored], source.weight) for source in pair)
    return divergences(first, second, entries)


def _check_finite(found: Tensor) -> None:
    if not bool(found.isfinite().all()):
        raise KinfolkError("the divergence between the models is not finite", fix="check both models' loss on its own")


def _check_pair(pair: tuple[Predictor, Predictor], inputs: Tensor) -> None:
    small, large = (source.vocab_size for source in pair)
    if small != large:
        raise KinfolkError(
            f"the models have vocabularies of {small} and {large} tokens",
            fix="compare members of one family, or compare bits per byte instead",
        )
    if not 0 <= int(inputs.min()) <= int(inputs.max()) < small:
        raise KinfolkError(
            f"token ids reach from {int(inputs.min())} to {int(inputs.max())}, and the models have {small}",
            fix="encode with the family's tokenizer",
        )
    for source in pair:
        check_context(source.model, inputs.shape[1])
