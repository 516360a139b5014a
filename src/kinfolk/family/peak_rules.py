"""The peak learning rate of every member from that of the first: how much lower it is for a larger model.

Published rules give a peak outright, but its level belongs to the batches, data and tokenizer of their own runs; what
carries over, if anything does, is how the best peak changes with size and tokens. So a family takes only the ratio that
a rule gives between two members, from the peak of the first. Nothing is lost by it: with a rule's own peak of the first
member as `recipe.peak_learning_rate`, every member has the rule's own peak.
"""

from dataclasses import dataclass
from typing import Literal

PeakRule = Literal["exponent", "step_law", "deepseek", "olmo_ladder"]


@dataclass(frozen=True)
class Size:
    """What rules know of a member."""

    counted: float
    """Parameters by the family's counting rule."""
    non_embedding: float
    """Parameters without vocabulary tables; the counted ones of a member without a shape."""
    tokens: float
    """Tokens of the member trained alone."""


def step_law_peak(non_embedding: float, tokens: float) -> float:
    """1.79 N^-0.713 D^0.307 (Li et al., arXiv 2503.04715).

    >>> round(step_law_peak(1.0737e9, 5.69e10), 7)
    0.0013051
    """
    return float(1.79 * non_embedding**-0.713 * tokens**0.307)


def deepseek_peak(non_embedding: float, tokens: float) -> float:
    """0.3118 C^-0.1250 with C = 6 N D (DeepSeek LLM, arXiv 2401.02954, equation 1)."""
    return float(0.3118 * (6 * non_embedding * tokens) ** -0.1250)


def olmo_ladder_peak(non_embedding: float) -> float:
    """0.0047 (N / 108e6)^(-1/3), whatever the tokens (github.com/allenai/OLMo-core, after arXiv 2406.19146)."""
    return float(0.0047 * (non_embedding / 108e6) ** (-1 / 3))


def peak_ratio(rule: PeakRule, size: Size, first: Size, exponent: float = 0.0) -> float:
    """The peak of a member over that of the first.

    `exponent` lowers it as (N / N_1)^-exponent, N by the family's counting (arXiv 2504.00623 lowers peaks by size; how
    could not be read), and matters to no other rule.
    """
    match rule:
        case "exponent":
            return float((size.counted / first.counted) ** -exponent)
        case "step_law":
            return step_law_peak(size.non_embedding, size.tokens) / step_law_peak(first.non_embedding, first.tokens)
        case "deepseek":
            return deepseek_peak(size.non_embedding, size.tokens) / deepseek_peak(first.non_embedding, first.tokens)
        case "olmo_ladder":
            return olmo_ladder_peak(size.non_embedding) / olmo_ladder_peak(first.non_embedding)
