"""Published rules for the peak learning rate and the batch size, which disagree: show them together.

Each is fitted to its own family of recipes and counts its own parameters; none covers optimisers like Muon.
"""

from dataclasses import dataclass

from kinfolk.family.peak_rules import deepseek_peak, olmo_ladder_peak, step_law_peak
from kinfolk.laws.loss import Counting


@dataclass(frozen=True)
class RateRule:
    """What one rule says about a run."""

    name: str
    source: str
    counting: Counting
    peak: float
    """Peak learning rate."""
    tokens_per_step: float
    """Batch size in tokens."""
    outside: tuple[str, ...]
    """In which ways the run lies outside the runs that the rule was fitted to."""


def step_law(non_embedding: float, tokens: float) -> RateRule:
    """lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 (arXiv 2503.04715).

    The public runs of dense models have 215M to 1.07B parameters and 4B to 100B tokens.
    """
    return RateRule(
        name="step law",
        source="Li et al., arXiv 2503.04715",
        counting="non_embedding",
        peak=step_law_peak(non_embedding, tokens),
        tokens_per_step=0.58 * tokens**0.571,
        outside=_outside(("parameters", non_embedding, 2.14e8, 1.08e9), ("tokens", tokens, 4e9, 1e11)),
    )


def deepseek(non_embedding: float, tokens: float) -> RateRule:
    """lr = 0.3118 C^-0.1250, batch = 0.2920 C^0.3271, C = 6 N D (arXiv 2401.02954, equation 1).

    Fitted to budgets of 1e17 to 2e19 FLOPs (section 3.1), and held against one of 1e20.
    """
    compute = 6 * non_embedding * tokens
    return RateRule(
        name="deepseek",
        source="DeepSeek LLM, arXiv 2401.02954",
        counting="non_embedding",
        peak=deepseek_peak(non_embedding, tokens),
        tokens_per_step=0.2920 * compute**0.3271,
        outside=_outside(("FLOPs", compute, 1e17, 2e19)),
    )


def olmo_ladder(non_embedding: float, tokens: float) -> RateRule:
    """lr = 0.0047 (N / 108e6)^(-1/3), batch = 327,680 (N / 108e6)^(2/3); D plays no part (arXiv 2406.19146).

    The paper is said to have swept models of 5M to 108M parameters, and to have tried two larger ones (second hand).
    """
    size = non_embedding / 108e6
    return RateRule(
        name="olmo ladder",
        source="github.com/allenai/OLMo-core, after arXiv 2406.19146",
        counting="non_embedding",
        peak=olmo_ladder_peak(non_embedding),
        tokens_per_step=327_680 * size ** (2 / 3),
        outside=_outside(("parameters", non_embedding, 5e6, 1.09e8)),
    )


def rate_rules(non_embedding: float, tokens: float) -> tuple[RateRule, ...]:
    """Every rule for N parameters without vocabulary tables and D tokens."""
    return step_law(non_embedding, tokens), deepseek(non_embedding, tokens), olmo_ladder(non_embedding, tokens)


def spread(rules: tuple[RateRule, ...]) -> tuple[float, float]:
    """Largest over smallest peak rate and batch size: how far the rules are apart."""
    peaks, batches = [rule.peak for rule in rules], [rule.tokens_per_step for rule in rules]
    return max(peaks) / min(peaks), max(batches) / min(batches)


def _outside(*values: tuple[str, float, float, float]) -> tuple[str, ...]:
    """Sentences about what lies outside: what it is, its value, and the limits of the fit.

    >>> _outside(("tokens", 1e9, 4e9, 1e11))
    ('1e+09 tokens, fitted 4e+09 to 1e+11',)
    """
    return tuple(
        f"{value:.3g} {what}, fitted {low:.3g} to {high:.3g}"
        for what, value, low, high in values
        if not low <= value <= high
    )
