"""What repeated data are worth: the data-constrained law of Muennighoff et al., arXiv 2305.16264, equation 5."""

import math

from kinfolk.laws.loss import LossLaw

TOKEN_DECAY = 15.387756
"""R_D*: repetitions after which new passes over the same tokens have lost most of their worth."""
SIZE_DECAY = 5.309743
"""R_N*: the same for parameters in excess of what the unique tokens support."""


def worth_of_repetitions(repetitions: float, decay: float = TOKEN_DECAY) -> float:
    """Unique passes that 1 + `repetitions` passes are worth.

    >>> round(worth_of_repetitions(3), 3), round(worth_of_repetitions(float("inf")), 2)
    (3.726, 16.39)
    """
    return 1.0 + decay * -math.expm1(-repetitions / decay)


def effective_tokens(tokens: float, unique: float) -> float:
    """Unique tokens that `tokens` of training on `unique` different ones are worth."""
    seen = min(tokens, unique)
    return seen * worth_of_repetitions(max(tokens / unique - 1.0, 0.0))


def predict_repeated(law: LossLaw, parameters: float, tokens: float, unique: float) -> float:
    """Loss of N `parameters` after `tokens` of training of which `unique` are different; any loss law.

    Without repetition, and with no more parameters than the unique tokens support, it is the law itself. The two
    constants were measured with `muennighoff`; with another law they are borrowed.
    """
    seen = min(tokens, unique)
    supported = min(parameters, law.optimum_parameters_for(seen))
    size = supported * worth_of_repetitions(max(parameters / supported - 1.0, 0.0), SIZE_DECAY)
    return law.predict(size, effective_tokens(tokens, unique))
