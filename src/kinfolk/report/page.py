"""Writes the report: one HTML page that opens anywhere, without a network."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.report import embed
from kinfolk.report.answer import answer, machines
from kinfolk.report.cautions import cautions
from kinfolk.report.figures import loss_plot, stage_colours
from kinfolk.report.forecasts import forecast_plot, forecasts_of
from kinfolk.report.outlooks import outlook_plot, outlooks_of
from kinfolk.report.records import Divergence
from kinfolk.report.run import Run, read_run
from kinfolk.report.schedule_law import LawView, chosen_by
from kinfolk.report.tree import tree


def write_report(runs: Sequence[Path], target: Path) -> Path:
    """Write the page about `runs` to `target`, and return `target`.

    Several runs are compared: an independent run is the baseline of the others of its family. Runs that are not
    finished give a page that says so. Raises KinfolkError naming what a run folder lacks.
    """
    if not runs:
        raise KinfolkError("there is no run to report on", fix="give at least one run folder")
    embed.refuse_folder(target, "report.html")
    named = _named(runs)
    read = [read_run(folder, name) for folder, name in named]
    laws = [chosen_by(folder, f"schedule-{index}-") for index, (folder, _) in enumerate(named)]
    return _write(read, [(run, law) for run, law in zip(read, laws, strict=True) if law], target)


def _named(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each folder with a name of its own: as much of the end of its path as sets it apart from the others."""
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    named = []
    for path in paths:
        parts = path.parts[1:] or (str(path),)
        ends = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
        others = [other for other in paths if other != path]
        unique = (
            end for end in ends if not any(f"/{other.as_posix().lstrip('/')}".endswith(f"/{end}") for other in others)
        )
        named.append((path, next(unique, str(path))))
    return named


def _write(runs: list[Run], laws: list[tuple[Run, LawView]], target: Path) -> Path:
    answers = [answer(run, runs) for run in runs]
    focus = [given for given in answers if not given.run.is_baseline] or answers
    colours = stage_colours(runs)
    known = [(run, found) for run in runs if (found := forecasts_of(run))]
    live = [(run, rows) for run in runs if (rows := outlooks_of(run))]
    plots = [loss_plot(runs, "flops"), loss_plot(runs, "tokens")]
    plots += ([forecast_plot(known)] if known else []) + ([outlook_plot(live)] if live else [])
    plots += [plot for _, law in laws for plot in law.plots]
    environment = embed.environment()
    environment.filters["moment"] = _moment
    environment.filters["unique_mappings"] = _unique_mappings
    return embed.write_page(
        environment,
        "report.html.jinja",
        target,
        plots,
        runs=runs,
        answers=answers,
        focus=focus,
        trees=[(run, tree(run, colours)) for run in runs],
        forecasts=known,
        outlooks=live,
        laws=laws,
        cautions=cautions(answers),
        next_members={run.name: _next_members(run) for run in runs},
        prompts=_prompts(runs),
        machines=machines,
        families=list(dict.fromkeys(run.plan.family for run in runs)),
    )


def _moment(unix_seconds: float) -> str:
    """A time of the ledger in UTC, so that the page is the same wherever it is made."""
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return str(unix_seconds)


def _unique_mappings(mappings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for mapping in mappings:
        if mapping not in found:
            found.append(mapping)
    return found


def _next_members(run: Run) -> dict[str, tuple[str, Divergence]]:
    """For each member, the one that was compared with it as its next, and how far the two are apart."""
    return {
        later.kl_from_previous.previous: (later.member, later.kl_from_previous)
        for later in run.members
        if later.kl_from_previous
    }


def _prompts(runs: list[Run]) -> list[tuple[str, dict[str, list[tuple[str, list[str]]]]]]:
    """Each prompt with what every member that was given it wrote, by run."""
    found: dict[str, dict[str, list[tuple[str, list[str]]]]] = {}
    for run in runs:
        for member in run.members:
            for prompt in dict.fromkeys(sample.prompt for sample in member.samples):
                texts = [sample.continuation for sample in member.samples if sample.prompt == prompt]
                found.setdefault(prompt, {}).setdefault(run.name, []).append((member.member, texts))
    return list(found.items())
