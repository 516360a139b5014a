"""The cheapest size for training and serving together (Sardana et al., arXiv 2401.00448, equation 3)."""

import math
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from kinfolk.laws.loss import LossLaw


@dataclass(frozen=True)
class ServingOptimum:
    """The model of a wanted loss that costs least over its life."""

    parameters: float
    tokens: float
    compute: float
    """6 N D for training and 2 N for each token served, in FLOPs."""
    saving: float
    """Against the compute-optimal model of the same loss, served as much."""


def cheapest_to_serve(law: LossLaw, loss: float, served_tokens: float) -> ServingOptimum:
    """Minimise 6 N D + 2 N D_inf subject to L(N, D) = `loss`; KinfolkError for a loss that no model reaches."""
    best = law.optimum(law.compute_for(loss))
    plain = 6 * best.parameters * best.tokens + 2 * best.parameters * served_tokens
    # Below this size no number of tokens reaches the loss.
    smallest = ((loss - law.E) / law.A) ** (-1 / law.alpha)

    def lifetime(log_parameters: float) -> float:
        parameters = math.exp(log_parameters)
        return 6 * parameters * law.tokens_for(loss, parameters) + 2 * parameters * served_tokens

    bounds = (math.log(smallest) + 1e-9, math.log(best.parameters))
    found = minimize_scalar(lifetime, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    parameters = math.exp(float(found.x))
    return ServingOptimum(parameters, law.tokens_for(loss, parameters), float(found.fun), 1 - float(found.fun) / plain)
