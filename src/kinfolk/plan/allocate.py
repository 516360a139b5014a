"""How a budget is split among members of given sizes, so that their losses are least on average.

Everything that a family costs and reads is linear in the tokens that its members would have alone, for every strategy;
the losses are convex in them. So there is one best split, and SLSQP finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from kinfolk.laws.loss import LossLaw
from kinfolk.laws.objectives import Array
from kinfolk.laws.repeated import effective_tokens


@dataclass(frozen=True)
class Rule:
    """What a strategy makes of members' tokens D alone; arrays of shape (member, member)."""

    train: Array
    """Tokens that the stages of each member train on are train @ D."""
    read: Array
    """Tokens on the line of stages up to each member are read @ D."""


@dataclass(frozen=True)
class Limits:
    """What the members' tokens alone must keep to; None is no limit."""

    spend: dict[str, Array]
    """What must not be overspent, by name: rows r of shape (member,) with r @ D <= 1."""
    growth: float | None
    """Least compute of a member alone over the one before it."""
    fewest: float | None
    """Tokens per parameter that every member gets at least."""
    most: float | None
    """Most tokens per parameter."""
    read: float | None
    """Most tokens that a line of stages may read."""


@dataclass(frozen=True)
class Allocation:
    """The best tokens D alone, of shape (member,), the objective, and which limits hold it."""

    tokens: Array
    objective: float
    """Weighted mean of the losses."""
    binding: tuple[str, ...]


def strategy_rule(strategy: str, parameters: Array, *, credit: float, decay_share: float) -> Rule:
    """The linear rules of `kinfolk.plan.strategies`, before they are rounded to steps."""
    members = len(parameters)
    alone = np.eye(members)
    if strategy == "independent":
        return Rule(alone, alone)
    inherited = np.zeros((members, members))
    for index in range(1, members):
        inherited[index, index - 1] = credit * parameters[index - 1] / parameters[index]
    chain = alone - inherited
    if strategy == "progressive":
        return Rule(chain, np.tril(np.ones((members, members))) @ chain)
    branches = decay_share * chain
    whole = alone - inherited @ (alone - branches)
    before = np.tril(np.ones((members, members)), -1)
    return Rule(whole, before @ (whole - branches) + whole)


def allocate(
    law: LossLaw,
    sizes: Array,
    parameters: Array,
    weights: Sequence[float],
    rule: Rule,
    limits: Limits,
    unique_tokens: float | None = None,
) -> Allocation | None:
    """The tokens alone of each member that make the weighted mean of the losses least; None where the least that the
    limits ask for is more than they allow.

    `sizes` are the members' N as the law counts it, `parameters` as the budget rule counts it.
    """
    share = np.asarray(weights, dtype=np.float64) / sum(weights)
    upper = _upper(rule, limits, parameters)
    start = _start(parameters, limits)
    if (upper @ start).max() > 1:
        return None
    start /= float((upper @ start).max())

    def objective(factors: Array) -> float:
        tokens = factors * start
        if unique_tokens:
            read = rule.read @ tokens
            tokens = tokens * np.array([effective_tokens(each, unique_tokens) / each for each in read])
        return float(share @ law.predict(sizes, tokens))

    growth = _growth(parameters, start, limits)
    least = np.diag(start / (limits.fewest * parameters)) if limits.fewest else np.empty((0, len(start)))
    matrix = np.vstack([-(upper * start), *growth, least])
    bound = np.concatenate([np.ones(len(upper)), np.zeros(len(growth)), -np.ones(len(least))])
    found = minimize(
        objective,
        np.ones(len(start)),
        method="SLSQP",
        bounds=[(1e-6, None)] * len(start),
        constraints={"type": "ineq", "fun": lambda factors: matrix @ factors + bound, "jac": lambda factors: matrix},
        options={"ftol": 1e-13, "maxiter": 300},
    )
    factors = np.ones(len(start))
    if np.all(np.isfinite(found.x)) and (matrix @ found.x + bound).min() > -1e-6:
        # All limits from above are homogeneous: what rounding left above them is scaled away.
        within = found.x / max(1.0, float((upper @ (found.x * start)).max()))
        factors = within if objective(within) < objective(factors) else factors
    return Allocation(factors * start, objective(factors), _binding(matrix @ factors + bound, len(start), limits))


def _upper(rule: Rule, limits: Limits, parameters: Array) -> Array:
    """Rows r with r @ D <= 1, in the order spending, tokens per parameter, reading."""
    rows = [row[None, :] for row in limits.spend.values()]
    if limits.most is not None:
        rows.append(np.diag(1 / (limits.most * parameters)))
    if limits.read is not None:
        rows.append(rule.read / limits.read)
    return np.vstack(rows)


def _growth(parameters: Array, start: Array, limits: Limits) -> list[Array]:
    """Rows r with r @ factors >= 0: every member's compute exceeds the one before it by enough."""
    rows = []
    for index in range(1, len(parameters)) if limits.growth is not None else ():
        row = np.zeros(len(parameters))
        own = parameters[index] * start[index]
        row[index], row[index - 1] = 1.0, -(limits.growth or 0.0) * parameters[index - 1] * start[index - 1] / own
        rows.append(row[None, :])
    return rows


def _start(parameters: Array, limits: Limits) -> Array:
    """The fewest tokens that keep to the limits from below, or next to none, in proportion to size."""
    tokens = (limits.fewest or 1e-9) * parameters
    for index in range(1, len(tokens)):
        least = (limits.growth or 0.0) * parameters[index - 1] * tokens[index - 1] / parameters[index]
        tokens[index] = max(tokens[index], least * (1 + 1e-9))
    return tokens


def _binding(slack: Array, members: int, limits: Limits) -> tuple[str, ...]:
    names = list(limits.spend)
    names += ["most"] * members if limits.most is not None else []
    names += ["read"] * members if limits.read is not None else []
    names += ["growth"] * (members - 1) if limits.growth is not None else []
    names += ["fewest"] * (len(slack) - len(names))
    return tuple(dict.fromkeys(name for name, left in zip(names, slack, strict=True) if left < 1e-3))
