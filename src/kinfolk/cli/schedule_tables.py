"""What `kinfolk schedule` shows to people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kinfolk.cli.numbers import short
from kinfolk.cli.schedule_stability_tables import print_scores
from kinfolk.schedule.divergence_scores import scores_document
from kinfolk.schedule.features import NAMES, meaning
from kinfolk.schedule.fitted import ScheduleFit
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.rank import Ranked, Ranking, describe
from kinfolk.schedule.trials import Trial

WIDTH = 140
SHOWN_ROWS = 40
SHOWN_COLUMNS = 7


def print_fit(fitted: ScheduleFit) -> None:
    """Every law that was tried with what it is worth, the one that is trusted, and what the runs lack."""
    law, console = fitted.law, _console()
    print(f"schedule law `{law.kind}` of {law.fitted.runs} runs: {fitted.why}")
    table = Table(title="laws tried", title_justify="left")
    for heading in ("law", "parameters", "error in sample", "error on runs left out", "fit", "may be trusted"):
        table.add_column(heading, justify="left" if heading in ("law", "may be trusted") else "right")
    for trial in fitted.trials:
        table.add_row(*_trial(trial, trial.kind.name == law.kind))
    console.print(table)
    if law.kind == "sixteen":
        console.print(_features(law))
    else:
        print(f"{law.kind}: {', '.join(f'{name} {value:.5g}' for name, value in law.numbers.items())}")
    calibration = law.calibration
    print(
        f"90 % interval of a forecast: ±{calibration.half_width:.2%} within the fitted horizon, wider beyond "
        f"({'an assumption' if calibration.basis == 'assumed' else f'by {calibration.errors} left-out losses'})"
    )
    for what, share in calibration.coverage.items():
        print(f"  left out by {what}: median error {calibration.medians[what]:.2%}, inside the interval {share:.0%}")
    print(
        f"noise between repeats: {law.noise:.4f} ({law.noise_basis}); schedules whose forecasts differ by less than "
        f"{calibration.difference:.2%} or {law.tie:.4f} cannot be told apart"
    )
    worst = max(fitted.residuals, key=lambda each: abs(each[2] - each[1]))
    print(f"largest residual: {worst[2] - worst[1]:+.4f} at {worst[0]}")
    print(_stability(law))
    if law.stability.regression:
        print_scores(scores_document(fitted.divergence))
    for finding in fitted.findings:
        print(f"note: {finding}")


def _trial(trial: Trial, chosen: bool) -> tuple[str, ...]:
    return (
        trial.kind.name + (" *" if chosen else ""),
        str(trial.kind.parameters),
        _nats(trial.in_sample),
        _nats(trial.held_out_error),
        f"{1e3 * trial.seconds:.0f} ms" if trial.numbers is not None else "-",
        ("yes: " if trial.eligible else "no: ") + trial.reason,
    )


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _features(law: ScheduleLaw) -> Table:
    table = Table(title="ln L = c + sum of weight x feature (features of weight 0 left out)", title_justify="left")
    table.add_column("feature")
    table.add_column("weight", justify="right")
    table.add_column("what it means")
    for name in NAMES:
        if law.numbers[name] > 0:
            table.add_row(name, f"{law.numbers[name]:.4g}", meaning(name))
    table.add_row("c", f"{law.numbers['constant']:.4g}", "what no schedule takes away")
    return table


def _stability(law: ScheduleLaw) -> str:
    seen = law.stability
    if not seen.diverged:
        return f"divergence: none seen up to a peak of {seen.largest_stable:g}; higher ones are not known to be stable"
    return (
        f"divergence: {seen.diverged} runs diverged, from a peak of {seen.smallest_diverged:g} on; "
        f"stable up to {seen.largest_stable:g}"
    )


def print_predictions(document: dict[str, Any]) -> None:
    """The rows with their forecasts, and what they were worth where losses are known."""
    rows = document["rows"]
    given = [name for name in rows[0] if name not in ("predicted", "low", "high", "warnings", "outside")]
    table = Table(title=f"{document['kind']} law of {document['source']}", title_justify="left")
    for name in given[:SHOWN_COLUMNS]:
        table.add_column(name, justify="right", overflow="fold")
    for name in ("predicted", "low", "high"):
        table.add_column(name, justify="right")
    outside = any(row["outside"] for row in rows)
    if outside:
        table.add_column("outside the fit", no_wrap=True)
    for row in rows[:SHOWN_ROWS]:
        numbers = [f"{row[name]:.4f}" for name in ("predicted", "low", "high")]
        table.add_row(
            *(row[name] for name in given[:SHOWN_COLUMNS]), *numbers, *([", ".join(row["outside"])] if outside else [])
        )
    _console().print(table)
    if len(rows) > SHOWN_ROWS:
        print(f"and {len(rows) - SHOWN_ROWS} more rows: --output writes all of them")
    if document["known"]:
        print(
            f"mean absolute error of {document['known']} known losses: {document['mean_absolute_error']:.4f}; "
            f"inside the 90 % interval: {document['inside']:.0%}"
        )
    for finding in document["findings"]:
        print(f"note: {finding}")


def print_ranking(ranking: Ranking, top: int) -> None:
    """The verdict, the best candidates, the default beside them, and every warning."""
    print(ranking.verdict)
    tokens = f", {short(ranking.tokens)} tokens" if ranking.tokens else ""
    table = Table(
        title=f"{len(ranking.candidates)} candidates, {ranking.steps:,} steps{tokens}; law: {ranking.law.kind}",
        title_justify="left",
    )
    for heading in (
        "",
        "schedule",
        "warm-up",
        "forecast",
        "90 % interval",
        "tied",
        "divergence",
    ):
        table.add_column(heading, justify="left" if heading in ("schedule", "divergence") else "right")
    table.add_column("outside the fit")
    for place, each in enumerate(ranking.candidates[:top], start=1):
        table.add_row(str(place), *_ranked(each))
    table.add_section()
    table.add_row("default", *_ranked(ranking.default))
    _console().print(table)
    print(f"default: {ranking.default_basis}; tied: its forecast cannot be told from the best")
    tied = ranking.tied
    print(f"{len(tied)} of {len(ranking.candidates)} cannot be told from the best (within {ranking.tie:.4f} nats)")
    if len(tied) > 1:
        latest = min(tied, key=lambda each: each.schedule.decay_steps)
        print(f"of these, the longest constant trunk, which can still be extended: {describe(latest.schedule)}")
    refused = sum(each.risk == "refused" for each in ranking.candidates)
    if refused:
        print(f"{refused} candidates are refused: their peak is more than half above the largest seen stable")
    for warning in ranking.warnings:
        print(f"warning: {warning}")


def _ranked(each: Ranked) -> tuple[str, ...]:
    risk = each.risk if each.probability is None else f"{each.risk} ({each.probability:.0%})"
    return (
        describe(each.schedule),
        f"{each.schedule.warmup_steps:,}",
        f"{each.loss:.4f}",
        f"{each.low:.4f} to {each.high:.4f}",
        "yes" if each.tied else "no",
        risk,
        ", ".join(each.outside),
    )


def _console() -> Console:
    return Console(width=None if Console().is_terminal else WIDTH)
