"""What is minimised on demonstrations: by a value network on top of bases, by a model alone, and in baking.

All sums run over the scored positions, the responses with the end of their turns, so that whoever knows their global
number divides by it. Logits are made at those positions only, and added up in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.transfer.base_logits import BaseLogits, Recomputed, all_logits, scored_logits
from kinfolk.transfer.batches import Batch
from kinfolk.transfer.logits import fit_width
from kinfolk.transfer.pair import Pair

Norm = Literal["masked", "released", "kl"]
NORMS: tuple[Norm, ...] = ("masked", "released", "kl")


@dataclass(frozen=True)
class Regulariser:
    """What is added to the cross-entropy, with its weights."""

    norm: Norm = "masked"
    """`masked`: mean over scored positions of (1/V) sum |d|. `released`: mean of |d| over all positions, prompts and
    padding too, as the published code has it. `kl`: mean over scored positions of KL(p_pair || p_base)."""
    norm_weight: float = 0.0
    entropy_weight: float = 0.0
    """Subtracts so much of the mean entropy of p_pair over scored positions (an option of Portable Reward Tuning,
    arXiv 2502.12776, whose exact form we have not read)."""
    anchor_weight: float = 0.0
    """Times the mean of KL(p_pair || p_base) over the positions of anchor text."""

    def __post_init__(self) -> None:
        for name in ("norm_weight", "entropy_weight", "anchor_weight"):
            weight = getattr(self, name)
            if not 0 <= weight < math.inf:
                raise KinfolkError(f"a weight of {weight:g}", where=name, fix="give 0 or more")


class Losses(NamedTuple):
    """Sums over a batch in nats."""

    minimised: Tensor
    """The cross-entropy and all that is added to it, which is to be differentiated."""
    cross_entropy: Tensor
    regulariser: Tensor
    """All that is added to the cross-entropy, weights and all."""


class PairLoss(nn.Module):
    """The value network `model` on frozen bases: mean over the bases of the cross-entropy of softmax(z_base + alpha d).

    Each pair has the same value network and a base of its own; neither pairs nor bases are submodules, so that nothing
    of them is trained, sharded or saved. In evaluation mode the pairs are those of `watched`, and nothing is added.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        watched: Sequence[Pair],
        base_logits: Sequence[BaseLogits],
        watched_logits: Sequence[BaseLogits],
        regulariser: Regulariser,
    ) -> None:
        """`base_logits` and `watched_logits` belong to the pairs one by one; cascades do not use them."""
        super().__init__()
        self.model = pairs[0].value
        self._on = {True: (tuple(pairs), tuple(base_logits)), False: (tuple(watched), tuple(watched_logits))}
        self._regulariser = regulariser

    def forward(self, batch: Batch) -> Losses:
        """Summed losses of a batch of demonstrations, or of anchor text."""
        pairs, sources = self._on[self.training]
        if pairs[0].config.scheme == "residual":
            everywhere = self.training and self._regulariser.norm == "released" and self._regulariser.norm_weight > 0
            whole = all_logits(self.model, batch.inputs).float() if everywhere else None
            change = scored_logits(self.model, batch) if whole is None else whole[batch.scored]
            found = [
                self._losses(pair, (Recomputed(pair.base) if batch.is_anchor else source)(batch), change, whole, batch)
                for pair, source in zip(pairs, sources, strict=True)
            ]
        else:
            found = [self._cascade(pair, batch) for pair in pairs]
        total, regulariser = (torch.stack(parts).mean() for parts in zip(*found, strict=True))
        return Losses(total + regulariser, total.detach(), regulariser.detach())

    def _cascade(self, pair: Pair, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            base = all_logits(pair.base, batch.inputs).float()
        whole = pair.value_logits(batch.inputs, base_logits=base)
        return self._losses(pair, base[batch.scored], whole[batch.scored], whole, batch)

    def _losses(
        self, pair: Pair, base: Tensor, change: Tensor, whole: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and regulariser of one base; base and change are (scored, vocab), whole is of all positions."""
        change = fit_width(change, base.shape[1])
        logits = pair.combined(base, change)
        zero = torch.zeros((), device=logits.device)
        if batch.is_anchor:
            weight = self._regulariser.anchor_weight / batch.positions_per_scored
            return zero, weight * divergence(logits, base)
        cross_entropy = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        return cross_entropy, self._added(logits, base, change, whole, batch) if self.training else zero

    def _added(self, logits: Tensor, base: Tensor, change: Tensor, whole: Tensor | None, batch: Batch) -> Tensor:
        chosen, added = self._regulariser, torch.zeros((), device=logits.device)
        if chosen.norm_weight and chosen.norm == "kl":
            added = added + chosen.norm_weight * divergence(logits, base)
        elif chosen.norm_weight and chosen.norm == "masked":
            added = added + chosen.norm_weight * absolute(change)
        elif chosen.norm_weight:
            assert whole is not None
            # The mean over all positions, times the scored ones, by whose number the sum will be divided.
            added = added + chosen.norm_weight * absolute(whole) / batch.positions_per_scored
        if chosen.entropy_weight:
            added = added - chosen.entropy_weight * entropy(logits)
        return added


class ResponseLoss(nn.Module):
    """Cross-entropy of a model alone: full fine-tuning."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Losses:
        """Summed losses of a batch of demonstrations."""
        logits = scored_logits(self.model, batch)
        cross_entropy = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        return Losses(cross_entropy, cross_entropy.detach(), torch.zeros_like(cross_entropy))


class BakeLoss(nn.Module):
    """(1 - mu) CE(y) + mu KL(p_teacher || p_student): distils a pair into the student `model`, at temperature 1."""

    def __init__(self, student: PreTrainedModel, teacher: Pair, share: float) -> None:
        """`share` is mu. The teacher is no submodule."""
        super().__init__()
        self.model = student
        self._teacher = (teacher,)
        self._share = share

    def forward(self, batch: Batch) -> Losses:
        """Summed losses of a batch of demonstrations; the KL, times mu, is reported as the regulariser."""
        logits = scored_logits(self.model, batch)
        cross_entropy = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        wanted = pair_logits(self._teacher[0], batch)
        distilled = self._share * divergence(wanted, logits)
        total = (1 - self._share) * cross_entropy + distilled
        return Losses(total, cross_entropy.detach(), distilled.detach())


@torch.no_grad()
def pair_logits(pair: Pair, batch: Batch) -> Tensor:
    """Logits (scored, vocab) in float32 of a pair at the scored positions."""
    if pair.config.scheme != "residual" or pair.config.vocabulary is not None:
        return all_logits(pair, batch.inputs)[batch.scored].float()
    base = scored_logits(pair.base, batch)
    return pair.combined(base, fit_width(scored_logits(pair.value, batch), base.shape[1]))


def absolute(change: Tensor) -> Tensor:
    """Sum over positions of (1/V) sum_v |d_v|; the change is (..., vocab)."""
    return change.abs().mean(dim=-1).sum()


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Sum over rows of KL(softmax(logits) || softmax(other)) in nats; both (rows, vocab)."""
    own, others = logits.log_softmax(dim=1), other.log_softmax(dim=1)
    return (own.exp() * (own - others)).sum()


def entropy(logits: Tensor) -> Tensor:
    """Sum over rows of the entropy of softmax(logits) in nats; logits are (rows, vocab)."""
    own = logits.log_softmax(dim=1)
    return -(own.exp() * own).sum()
