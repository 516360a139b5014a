"""How alike two members of a family predict: the divergence between adjacent sizes on the same text.

Members of a progressively grown family are more alike than models trained on their own (Yano et al., arXiv
2504.00623, measure it by KL divergence between adjacent sizes).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.head import Predictor, check_context, logit_chunks, predictor
from kinfolk.evaluate.loss import evaluation_mode

_ROWS = 8


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
    training sequence. Logits exist for a chunk of positions at a time. Raises KinfolkError for different vocabularies,
    token ids outside them, sequences of the wrong shape, and divergences that are not finite.
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
            totals += _sums(pair, inputs[start : start + rows].to(device)).cpu()
    if not bool(totals.isfinite().all()):
        raise KinfolkError("the divergence between the models is not finite", fix="check both models' loss on its own")
    forward, backward, agreement = (totals / inputs.numel()).tolist()
    return Consistency(forward, backward, agreement, inputs.numel())


def _sums(pair: tuple[Predictor, Predictor], inputs: Tensor) -> Tensor:
    """Sums over tokens of KL(small || large), KL(large || small) and agreement, float64 (3,)."""
    small, large = ((source.states(inputs).flatten(0, 1), source.weight) for source in pair)
    totals = torch.zeros(3, dtype=torch.float64, device=inputs.device)
    # Chunks of the two are of the same size: it depends on the vocabulary and the device only.
    for (_, of_small), (_, of_large) in zip(logit_chunks(*small), logit_chunks(*large), strict=True):
        log_small, log_large = of_small.log_softmax(dim=1), of_large.log_softmax(dim=1)
        ratio = log_small - log_large
        totals[0] += (log_small.exp() * ratio).sum(dim=1).double().sum()
        totals[1] -= (log_large.exp() * ratio).sum(dim=1).double().sum()
        totals[2] += (of_small.argmax(dim=1) == of_large.argmax(dim=1)).sum()
    return totals


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
