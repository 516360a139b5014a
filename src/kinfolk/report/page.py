"""Writes the report: one HTML page that opens anywhere, without a network."""

from collections.abc import Sequence
from pathlib import Path

from kinfolk.errors import KinfolkError
from kinfolk.report import embed
from kinfolk.report.run import Run, read_run
from kinfolk.report.schedule_law import LawView, chosen_by
from kinfolk.report.sections import page_fields


def write_report(runs: Sequence[Path], target: Path) -> Path:
    """Write the page about `runs` to `target`, and return `target`.

    Several runs are compared: an independent run is the baseline of the others of its family. Runs that are not
    finished give a page that says so. Raises KinfolkError naming what a run folder lacks.
    """
    if not runs:
        raise KinfolkError("there is no run to report on", fix="give at least one run folder")
    embed.refuse_folder(target, "report.html")
    named = named_folders(runs)
    read = [read_run(folder, name) for folder, name in named]
    laws = [chosen_by(folder, f"schedule-{index}-") for index, (folder, _) in enumerate(named)]
    return _write(read, [(run, law) for run, law in zip(read, laws, strict=True) if law], target)


def named_folders(folders: Sequence[Path]) -> list[tuple[Path, str]]:
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
    fields = page_fields(runs, laws)
    return embed.write_page(embed.environment(), "report.html.jinja", target, fields.pop("plots"), **fields)
