"""Published rules for the peak learning rate and the batch size, which disagree: show them together.

Each is fitted to its own family of recipes and counts its own parameters; none covers optimisers like Muon.
"""

from dataclasses import dataclass

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


def step_law(non_embedding: float, tokens: float) -> RateRule:
    """lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 (arXiv 2503.04715)."""
    return RateRule(
        name="step law",
        source="Li et al., arXiv 2503.04715",
        counting="non_embedding",
        peak=1.79 * non_embedding**-0.713 * tokens**0.307,
        tokens_per_step=0.58 * tokens**0.571,
    )


def deepseek(non_embedding: float, tokens: float) -> RateRule:
    """lr = 0.3118 C^-0.1250, batch = 0.2920 C^0.3271, C = 6 N D (arXiv 2401.02954)."""
    compute = 6 * non_embedding * tokens
    return RateRule(
        name="deepseek",
        source="DeepSeek LLM, arXiv 2401.02954",
        counting="non_embedding",
        peak=0.3118 * compute**-0.1250,
        tokens_per_step=0.2920 * compute**0.3271,
    )


def olmo_ladder(non_embedding: float, tokens: float) -> RateRule:
    """lr = 0.0047 (N / 108e6)^(-1/3), batch = 327,680 (N / 108e6)^(2/3); D plays no part (arXiv 2406.19146)."""
    size = non_embedding / 108e6
    return RateRule(
        name="olmo ladder",
        source="github.com/allenai/OLMo-core, after arXiv 2406.19146",
        counting="non_embedding",
        peak=0.0047 * size ** (-1 / 3),
        tokens_per_step=327_680 * size ** (2 / 3),
    )


def rate_rules(non_embedding: float, tokens: float) -> tuple[RateRule, ...]:
    """Every rule for N parameters without vocabulary tables and D tokens."""
    return step_law(non_embedding, tokens), deepseek(non_embedding, tokens), olmo_ladder(non_embedding, tokens)


def spread(rules: tuple[RateRule, ...]) -> tuple[float, float]:
    """Largest over smallest peak rate and batch size: how far the rules are apart."""
    peaks, batches = [rule.peak for rule in rules], [rule.tokens_per_step for rule in rules]
    return max(peaks) / min(peaks), max(batches) / min(batches)
