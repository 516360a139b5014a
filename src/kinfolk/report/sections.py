"""What the sections of the report show: everything that its template is given, from what was read of the runs."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from kinfolk.report.answer import answer, machines
from kinfolk.report.cautions import cautions
from kinfolk.report.consistency import alike
from kinfolk.report.cost_figure import cost_plot
from kinfolk.report.events import Divergence
from kinfolk.report.figures import stage_colours
from kinfolk.report.forecasts import forecast_plot, forecasts_of
from kinfolk.report.loss_figure import loss_plot
from kinfolk.report.outlooks import outlook_plot, outlooks_of
from kinfolk.report.rate_figure import rate_plot
from kinfolk.report.run import Run
from kinfolk.report.samples import prompts_of
from kinfolk.report.schedule_law import LawView
from kinfolk.report.stage_facts import stage_facts
from kinfolk.report.tasks import task_plot, task_rows, tested_members
from kinfolk.report.tree import Node, tree


def page_fields(runs: Sequence[Run], laws: Sequence[tuple[Run, LawView]]) -> dict[str, Any]:
    """The fields of report.html.jinja: `plots`, and what the sections show."""
    answers = [answer(run, runs) for run in runs]
    colours = stage_colours(runs)
    forecasts = [(run, found) for run in runs if (found := forecasts_of(run))]
    outlooks = [(run, rows) for run in runs if (rows := outlooks_of(run))]
    tested = [run for run in runs if run.tasks]
    plots = [loss_plot(runs), cost_plot(runs), rate_plot(runs)]
    plots += ([forecast_plot(forecasts)] if forecasts else []) + ([outlook_plot(outlooks)] if outlooks else [])
    plots += [plot for plot in (task_plot(tested),) if not plot.empty] + [plot for _, law in laws for plot in law.plots]
    return {
        "plots": plots,
        "plot": {plot.key: plot for plot in plots},
        "runs": runs,
        "answers": answers,
        "focus": [given for given in answers if not given.run.is_baseline] or answers,
        "trees": [(run, tree(run, colours)) for run in runs],
        "facts": {run.name: {stage.plan.name: stage_facts(stage) for stage in run.stages} for run in runs},
        "hidden_beside": hidden_beside(runs),
        "forecasts": forecasts,
        "outlooks": outlooks,
        "laws": laws,
        "alike": [(run, known) for run in runs if (known := alike(run))],
        "tasks": [(run, task_rows(run), tested_members(run)) for run in tested],
        "cautions": cautions(answers),
        "next_members": {run.name: _next_members(run) for run in runs},
        "prompts": prompts_of(runs),
        "sampling": list(dict.fromkeys(member.sampling for run in runs for member in run.members if member.sampling)),
        "machines": machines,
        "moment": moment,
        "unique_mappings": unique_mappings,
        "families": list(dict.fromkeys(run.plan.family for run in runs)),
    }


def moment(unix_seconds: float) -> str:
    """A time of the ledger in UTC, so that the page is the same wherever it is made."""
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return str(unix_seconds)


def unique_mappings(mappings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of the mappings once, in order."""
    found: list[dict[str, Any]] = []
    for mapping in mappings:
        if mapping not in found:
            found.append(mapping)
    return found


def hidden_beside(runs: Sequence[Run]) -> Callable[[Run, Node], list[str]]:
    """Which curves of the loss plot to hide, so that one stage's lineage is left."""

    def groups(run: Run, node: Node) -> list[str]:
        every = [(number, other, stage.plan.name) for number, other in enumerate(runs) for stage in other.stages]
        return [f"{number}/{name}" for number, other, name in every if other is not run or name in node.others]

    return groups


def _next_members(run: Run) -> dict[str, tuple[str, Divergence]]:
    """For each member, the one that was compared with it as its next, and how far the two are apart."""
    return {
        later.kl_from_previous.previous: (later.member, later.kl_from_previous)
        for later in run.members
        if later.kl_from_previous
    }
