"""Replays a planner's decision on a ladder of runs that were really trained, and says what it would have cost.

A law is fitted to the cheap runs alone. For every dearer budget that several sizes were trained at, the planner takes
the run that the law forecasts to be best; its regret is how much worse that run came out than the best one there.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.fitted import fit_runs
from kinfolk.laws.objectives import Array, Mask
from kinfolk.laws.runs import RunTable

SAME_BUDGET = 1.1
"""Runs within this factor of compute compete for one budget."""

FEWEST_SIZES = 3
"""Different sizes that a budget needs, for there to be a choice."""

RULE = 20.0
"""Tokens per parameter of the rule of thumb that the planner is compared with."""


@dataclass(frozen=True)
class Decision:
    """What was chosen at one budget, and what would have been best."""

    compute: float
    """6ND of the dearest run there."""
    candidates: int
    chosen_parameters: float
    chosen_tokens: float
    chosen_loss: float
    forecast: float
    inside: bool | None
    """Whether the chosen run's loss lies in the interval of its forecast."""
    best_parameters: float
    best_tokens: float
    best_loss: float
    regret: float
    """chosen / best - 1."""
    rule_regret: float
    """Of the run nearest to 20 tokens per parameter."""
    blind_regret: float
    """Mean over all candidates: what choosing at random costs."""


def replay(table: RunTable, below: float | None = None) -> dict[str, Any]:
    """Every decision above the cut `below` (6ND; by default the median run), as JSON.

    KinfolkError where there are too few runs below it, or no budget above it with several sizes.
    """
    cut = float(np.median(table.compute)) if below is None else below
    known = table.compute <= cut
    if known.sum() < FEWEST_SIZES or known.all():
        raise KinfolkError(
            f"{known.sum()} runs are below {cut:.4g} FLOPs and {(~known).sum()} above",
            where="--below",
            fix="choose a cut with several runs on both sides",
        )
    law = fit_runs(_part(table, known), resamples=0).law
    decisions = []
    for rows in _budgets(table, ~known):
        size, tokens, loss = table.parameters[rows], table.tokens[rows], table.loss[rows]
        chosen, best = int(np.argmin(law.predict(size, tokens))), int(np.argmin(loss))
        rule = int(np.argmin(np.abs(np.log(tokens / size / RULE))))
        forecast = law.forecast(float(size[chosen]), float(tokens[chosen]))
        within = None
        if forecast.low is not None and forecast.high is not None:
            within = bool(forecast.low <= loss[chosen] <= forecast.high)
        decisions.append(
            Decision(
                compute=float(table.compute[rows].max()),
                candidates=len(rows),
                chosen_parameters=float(size[chosen]),
                chosen_tokens=float(tokens[chosen]),
                chosen_loss=float(loss[chosen]),
                forecast=forecast.loss,
                inside=within,
                best_parameters=float(size[best]),
                best_tokens=float(tokens[best]),
                best_loss=float(loss[best]),
                regret=float(loss[chosen] / loss[best] - 1),
                rule_regret=float(loss[rule] / loss[best] - 1),
                blind_regret=float(loss.mean() / loss[best] - 1),
            )
        )
    if not decisions:
        raise KinfolkError(
            f"above {cut:.4g} FLOPs no budget was spent on {FEWEST_SIZES} sizes",
            where=table.source,
            fix="lower --below, or give a ladder with runs of equal compute",
        )
    return {
        "source": table.source,
        "unit": table.unit,
        "cut": cut,
        "fitted": int(known.sum()),
        "law": law.model_dump(mode="json"),
        "decisions": [asdict(decision) for decision in decisions],
        "mean_regret": _mean(decisions, "regret"),
        "worst_regret": max(decision.regret for decision in decisions),
        "mean_rule_regret": _mean(decisions, "rule_regret"),
        "mean_blind_regret": _mean(decisions, "blind_regret"),
        "best_chosen": sum(decision.regret == 0 for decision in decisions),
        "inside": sum(decision.inside is True for decision in decisions),
        "findings": list(table.findings),
    }


def _budgets(table: RunTable, above: Mask) -> list[Array]:
    """Rows of runs that compete: neighbours in compute, of several sizes; cheapest first."""
    order = [int(row) for row in np.argsort(table.compute, kind="stable") if above[row]]
    groups: list[list[int]] = []
    for row in order:
        if groups and table.compute[row] <= SAME_BUDGET * table.compute[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    rows = [np.array(group) for group in groups]
    return [group for group in rows if len(np.unique(table.parameters[group])) >= FEWEST_SIZES]


def _part(table: RunTable, rows: Mask) -> RunTable:
    return replace(
        table,
        parameters=table.parameters[rows],
        tokens=table.tokens[rows],
        loss=table.loss[rows],
        families=None if table.families is None else table.families[rows],
        groups=None if table.groups is None else table.groups[rows],
        names=tuple(name for name, kept in zip(table.names, rows.tolist(), strict=True) if kept),
    )


def _mean(decisions: list[Decision], field: str) -> float:
    return float(np.mean([getattr(decision, field) for decision in decisions]))
