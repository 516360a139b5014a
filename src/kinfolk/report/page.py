"""Writes the report: one HTML page that opens anywhere, without a network."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.report import embed, numbers
from kinfolk.report.answer import answer, machines
from kinfolk.report.cautions import cautions
from kinfolk.report.figures import loss_plot, stage_colours
from kinfolk.report.records import Divergence
from kinfolk.report.run import Run, read_run
from kinfolk.report.tree import tree


def write_report(runs: Sequence[Path], target: Path) -> Path:
    """Write the page about `runs` to `target`, and return `target`.

    Several runs are compared: an independent run is the baseline of the others of its family. Runs that are not
    finished give a page that says so. Raises KinfolkError naming what a run folder lacks.
    """
    if not runs:
        raise KinfolkError("there is no run to report on", fix="give at least one run folder")
    if target.is_dir():
        raise KinfolkError("this is a folder", where=str(target), fix="give the name of a file, such as report.html")
    try:
        files.write_text(target, _render([read_run(folder, name) for folder, name in _named(runs)]))
    except OSError as error:
        raise KinfolkError(
            f"the page cannot be written ({error.strerror})", where=str(target), fix="give a place you may write to"
        ) from error
    return target


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


def _render(runs: list[Run]) -> str:
    answers = [answer(run, runs) for run in runs]
    focus = [given for given in answers if not given.run.is_baseline] or answers
    colours = stage_colours(runs)
    plots = [loss_plot(runs, "flops"), loss_plot(runs, "tokens")]
    environment = embed.environment()
    environment.filters["moment"] = _moment
    environment.filters["unique_mappings"] = _unique_mappings
    scripts = embed.scripts()
    page = environment.get_template("report.html.jinja").render(
        runs=runs,
        answers=answers,
        focus=focus,
        plots=plots,
        plot_data=embed.plot_data(plots),
        trees=[(run, tree(run, colours)) for run in runs],
        cautions=cautions(answers),
        next_members={run.name: _next_members(run) for run in runs},
        prompts=_prompts(runs),
        machines=machines,
        n=numbers,
        scripts=scripts,
        hashes=embed.hashes(scripts),
        families=list(dict.fromkeys(run.plan.family for run in runs)),
    )
    # A model can write what is no text.
    return embed.as_text(page)


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
