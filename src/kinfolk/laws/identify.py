"""What runs can and cannot tell about a law, and which run would tell the most.

The measure is the condition number of the Jacobian of ln L in (ln A', ln B', ln E, alpha, beta): a design at one fixed
number of tokens per parameter cannot separate size from data (arXiv 2605.08541), and its Jacobian is singular.
"""

from dataclasses import dataclass

import numpy as np

from kinfolk.laws.fitting import FitResult, Parameters, log_jacobian
from kinfolk.laws.objectives import Array

CAUTION = 300.0
"""Condition number above which exponents are known badly."""
UNIDENTIFIED = 1e4
"""Condition number above which exponents are not known at all."""
FEWEST_SIZES = 4
FEWEST_CHECKED = 8
NARROW_RATIO = 1.5
"""Runs whose tokens per parameter differ by less than this factor are at one ratio."""


@dataclass(frozen=True)
class Identification:
    """Whether the runs hold all five numbers of the law, and what they lack."""

    condition_number: float | None
    """None where it is beyond floating point."""
    identified: bool
    """Whether all five numbers are held."""
    forecasts: bool
    """Whether the free fit is to be used: also where a term of it vanished, if the others are held."""
    findings: tuple[str, ...]
    """Plain sentences; empty if there is nothing to say."""


@dataclass(frozen=True)
class NextRun:
    """The affordable run that would make the forecast of a target most certain."""

    parameters: float
    tokens: float
    target_compute: float
    variance_ratio: float
    """Variance of the target's forecast with the run, as a share of that without it."""


def identify(parameters: Array, tokens: Array, result: FitResult) -> Identification:
    """What runs of shape (run,) hold of the law that was fitted to them."""
    findings = []
    ratios = tokens / parameters
    sizes = len(np.unique(np.round(np.log(parameters), 2)))
    condition = condition_number(parameters, tokens, result)
    if ratios.max() / ratios.min() < NARROW_RATIO:
        findings.append(
            f"all runs are at {np.median(ratios):.3g} tokens per parameter (within a factor of "
            f"{ratios.max() / ratios.min():.2f}): size and data cannot be told apart"
        )
    if sizes < FEWEST_SIZES:
        findings.append(f"there are only {sizes} sizes of model; {FEWEST_SIZES} or more hold the curvature in N")
    for name in result.at_bound:
        what = "vanishes" if name in "EAB" else "leaves the range of plausible exponents"
        findings.append(f"in a free fit {name} {what}: the data do not hold it")
    held = condition is not None and condition <= UNIDENTIFIED
    outside = any(name in ("alpha", "beta") for name in result.at_bound)
    if len(parameters) < FEWEST_CHECKED:
        findings.append(f"{len(parameters)} runs for five numbers leave almost nothing to check the fit with")
    if condition is None or condition > UNIDENTIFIED:
        size = "beyond floating point" if condition is None else f"{condition:.2g}"
        findings.append(
            f"the fit's condition number is {size}, above {UNIDENTIFIED:g}: the exponents are not identified"
        )
    elif condition > CAUTION:
        findings.append(f"the fit's condition number is {condition:.3g}, above {CAUTION:g}: exponents are known badly")
    return Identification(condition, held and not result.at_bound, held and not outside, tuple(findings))


def condition_number(parameters: Array, tokens: Array, result: FitResult) -> float | None:
    """Of the Jacobian of ln L at the runs, without terms that vanished; None above 1e15."""
    columns = [index for index, terms in enumerate(("A", "B", "E", "A", "B")) if terms not in result.at_bound]
    jacobian = log_jacobian(parameters, tokens, result.parameters)[:, columns]
    if len(jacobian) < jacobian.shape[1] or not np.all(np.isfinite(jacobian)):
        return None
    condition = float(np.linalg.cond(jacobian))
    return condition if condition < 1e15 else None


def next_run(parameters: Array, tokens: Array, law: Parameters, *, reach: float = 10.0) -> NextRun:
    """The run, no dearer than the dearest so far, that most reduces the variance of a forecast at `reach` times it.

    The variance is g' (J'J + ridge)^-1 g with J the Jacobian of ln L at the runs and g its gradient at the target, at
    the runs' middle ratio of tokens to parameters. Candidates are 12 sizes from half the smallest to four times the
    largest, at 5 to 160 tokens per parameter.
    """
    budget = float((6 * parameters * tokens).max())
    middle = float(np.exp(np.median(np.log(tokens / parameters))))
    size = np.sqrt(reach * budget / (6 * middle))
    # Few tokens per parameter may make every such size too dear: then begin with one that the budget holds.
    smallest = min(float(parameters.min()) / 2, float(np.sqrt(budget / 60)))
    sizes = np.geomspace(smallest, parameters.max() * 4, 12)
    ratios = np.array([5.0, 10.0, 20.0, 40.0, 80.0, 160.0])
    n, m = (grid.ravel() for grid in np.meshgrid(sizes, ratios, indexing="ij"))
    affordable = 6 * n * n * m <= budget * (1 + 1e-9)
    n, d = n[affordable], (n * m)[affordable]
    rows = log_jacobian(np.concatenate([parameters, n, [size]]), np.concatenate([tokens, d, [size * middle]]), law)
    runs, candidates, target = rows[: len(parameters)], rows[len(parameters) : -1], rows[-1]
    information = runs.T @ runs
    information += 1e-6 * np.trace(information) / 5 * np.eye(5)
    inverse = np.linalg.inv(information)
    before = float(target @ inverse @ target)
    # Sherman and Morrison: one more run v takes (g' I v)^2 / (1 + v' I v) off the variance.
    moved = candidates @ inverse
    gain = (moved @ target) ** 2 / (1 + np.einsum("cp,cp->c", moved, candidates))
    best = int(gain.argmax())
    return NextRun(float(n[best]), float(d[best]), reach * budget, max(0.0, 1 - float(gain[best]) / before))
