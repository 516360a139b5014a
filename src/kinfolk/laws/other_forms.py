"""Published loss laws of other forms: for weighing designs that L(N, D) does not know. None of them has an interval.

The constants are those of the papers, written down from memory of them except where a source is given; check a figure
before citing it. Losses are in nats per token of each paper's own data.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FineGrainedExperts:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta, with N all parameters and G the granularity.

    Krajewski et al., arXiv 2402.07871, section 5, for 64 experts; a dense model has g = 0 and constants of its own.
    """

    a: float
    alpha: float
    b: float
    beta: float
    g: float
    gamma: float
    c: float

    def predict(self, parameters: float, tokens: float, granularity: float = 1.0) -> float:
        """Loss of a model of N `parameters`, all experts counted, after D `tokens`."""
        size = (self.g / granularity**self.gamma + self.a) * parameters**-self.alpha
        return float(self.c + size + self.b * tokens**-self.beta)


EXPERTS_64 = FineGrainedExperts(a=18.1, alpha=0.115, b=30.8, beta=0.147, g=2.1, gamma=0.58, c=0.47)
EXPERTS_DENSE = FineGrainedExperts(a=16.3, alpha=0.126, b=26.7, beta=0.127, g=0.0, gamma=0.0, c=0.47)


def sparse_loss(parameters: float, tokens: float, sparsity: float) -> float:
    """Loss of a language model with N non-zero `parameters` of which a share `sparsity` was pruned away.

    L = (a_S (1 - S)^b_S + c_S) N^-b_N + (a_D / D)^b_D + c (Frantar et al., arXiv 2309.08520, equation 1, for T5 on C4).
    It prices a pruned sibling against a dense one with as many non-zero parameters.
    """
    size = (16.8 * (1 - sparsity) ** 0.722 + 45.0) * parameters**-0.245
    return float(size + (6.90e8 / tokens) ** 0.203 + 0.651)


def kaplan_loss(body: float, tokens: float) -> float:
    """L = ((6.4e13 / N)^(.076 / .103) + 1.8e13 / D)^.103, N without vocabulary tables (arXiv 2001.08361, eq. 1.5)."""
    return float(((6.4e13 / body) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103)


def critical_batch(loss: float) -> float:
    """Tokens in a step beyond which larger batches gain little: 2.1e8 / L^(1 / .21) (arXiv 2001.08361, eq. 1.4)."""
    return float(2.1e8 * loss ** (-1 / 0.21))
