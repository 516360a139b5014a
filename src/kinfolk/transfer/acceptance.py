"""How often a target takes over what a draft proposes: speculative decoding (Leviathan et al., arXiv 2211.17192)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError


@dataclass
class Drafts:
    """What was drafted and what of it was taken over: one entry of each list for every pass of the target."""

    lengths: list[int] = field(default_factory=list)
    """Tokens before the drafted ones."""
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def judged(self) -> list[int]:
        """Places in the text of the tokens that the target took over or refused: all up to the first refusal."""
        passes = zip(self.lengths, self.drafted, self.accepted, strict=True)
        return [place for start, made, taken in passes for place in range(start, start + min(taken + 1, made))]

    @property
    def rate(self) -> float:
        """Tokens taken over among those that the target judged: all up to the first that it refused.

        It estimates the mean of `acceptance` over the positions that were reached.
        """
        return sum(self.accepted) / len(self.judged) if self.judged else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for every forward pass of the target: those taken over, and its own one."""
        return 1 + sum(self.accepted) / len(self.accepted) if self.accepted else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "rate": self.rate, "tokens_per_pass": self.tokens_per_pass}


def acceptance(target_logits: Tensor, draft_logits: Tensor) -> Tensor:
    """a = sum over v of min(p(v), q(v)), float64 (...): the exact chance that a token drawn from q is taken over.

    Equal to 1 less the total variation distance of p and q. Logits (..., vocabulary), both at the temperature and
    cut-off that decoding uses.
    """
    p, q = (logits.double().softmax(-1) for logits in (target_logits, draft_logits))
    return torch.minimum(p, q).sum(-1)


@torch.no_grad()
def expected_acceptance(target: PreTrainedModel, draft: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """`acceptance` after every token of texts (batch, time), teacher-forced: no decoding is needed.

    Best on the target's own samples. KinfolkError for models of unlike vocabulary.
    """
    logits = [model(input_ids=input_ids).logits for model in (target, draft)]
    if logits[0].shape != logits[1].shape:
        raise KinfolkError(
            f"the models have vocabularies of {logits[0].shape[-1]} and {logits[1].shape[-1]} tokens",
            fix="use a draft of the same family",
        )
    return acceptance(logits[0], logits[1])


@contextmanager
def counted_drafts(target: PreTrainedModel) -> Iterator[Drafts]:
    """Count what `target.generate(assistant_model=...)`, or prompt lookup, drafts and takes over within the block.

    transformers reports nothing itself, but tells its candidate generator the number of matches after every pass.
    """
    counts = Drafts()
    untyped: Any = target
    make = untyped._get_candidate_generator

    def counting(*args: Any, **options: Any) -> Any:
        generator = make(*args, **options)
        propose, update = generator.get_candidates, generator.update_candidate_strategy

        def get_candidates(input_ids: Tensor, *more: Any, **named: Any) -> Any:
            ids, logits = propose(input_ids, *more, **named)
            counts.lengths.append(int(input_ids.shape[1]))
            counts.drafted.append(int(ids.shape[1] - input_ids.shape[1]))
            return ids, logits

        def update_candidate_strategy(input_ids: Tensor, scores: Tensor, num_matches: int) -> Any:
            counts.accepted.append(min(int(num_matches), counts.drafted[-1]))
            return update(input_ids, scores, num_matches)

        generator.get_candidates, generator.update_candidate_strategy = get_candidates, update_candidate_strategy
        return generator

    untyped._get_candidate_generator = counting
    try:
        yield counts
    finally:
        del untyped._get_candidate_generator
