"""A law from too few runs, or from runs that cannot tell its exponents: borrow the shape, fit the level.

Five numbers need five different runs at several ratios of tokens to parameters. With less, alpha, beta and A/B come
from a named law, and only E and one scale k of both terms are fitted: L = E + k (A N^-alpha + B D^-beta).
"""

import numpy as np
from scipy.optimize import nnls

from kinfolk.laws.fitting import Parameters
from kinfolk.laws.loss import Calibration, LossLaw
from kinfolk.laws.objectives import Array

FEWEST_RUNS = 5

FEWEST_BORROWED = 3
"""Runs below a cut that a borrowed fit needs."""

ASSUMED = Calibration(half_width=0.11, reach=1.0, hidden_runs=0, basis="assumed")
"""For fits that cannot be calibrated by hiding runs; how often it held on public ladders is in docs/laws.md."""


def borrow(law: LossLaw, parameters: Array, tokens: Array, loss: Array) -> Parameters:
    """E and the common scale of A and B by non-negative least squares, on runs of shape (run,).

    Where all runs have the same N and D there is nothing to tell E from the scale: E alone moves, and the scale only if
    E would be negative.
    """
    reducible = law.predict(parameters, tokens) - law.E
    if np.ptp(reducible) <= 1e-9 * reducible.max():
        constant = max(float((loss - reducible).mean()), 0.0)
        scale = 1.0 if constant > 0 else float((loss @ reducible) / (reducible @ reducible))
    else:
        (constant, scale), _ = nnls(np.stack([np.ones_like(loss), reducible], axis=1), loss)
    return Parameters(float(constant), law.A * float(scale), law.B * float(scale), law.alpha, law.beta)
