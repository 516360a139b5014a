"""The page about a schedule law, and the same sections in the report of a run whose schedule a law has chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json
from kinfolk.report import embed
from kinfolk.report.figures import Plot
from kinfolk.report.schedule_figures import Contribution, Point, contributions, forecasts, rate_curves, scatter, weights
from kinfolk.schedule.fitted import ScheduleFit, units_for
from kinfolk.schedule.kinds import KINDS
from kinfolk.schedule.law import ScheduleLaw, Settings, load_law
from kinfolk.schedule.left_out import left_out
from kinfolk.schedule.points import aligned
from kinfolk.schedule.rank import describe

PROBE = "schedule-probe"
"""Folder of a run in which its schedule's law and ranking lie."""


@dataclass(frozen=True)
class Candidate:
    """One row of the table of candidates."""

    place: str
    schedule: str
    document: dict[str, Any]


@dataclass(frozen=True)
class LawView:
    """A law as it is shown, with its plots."""

    law: ScheduleLaw
    why: str | None
    points: tuple[Point, ...]
    ranking: dict[str, Any] | None
    candidates: tuple[Candidate, ...]
    features: tuple[Contribution, ...]
    findings: tuple[str, ...]
    plots: tuple[Plot, ...]

    @property
    def formula(self) -> str:
        return KINDS[self.law.kind].formula

    @property
    def left_out(self) -> int:
        """Points that were predicted without having been seen."""
        return sum(point.what != "in sample" for point in self.points)


SHOWN = 16
"""Candidates in the table and in the plots; the default and one that is refused are always among them."""


def write_fit_page(fitted: ScheduleFit, target: Path) -> Path:
    """Write one self-contained page about a fit to `target`, and return `target`."""
    embed.refuse_folder(target, "schedule-law.html")
    law = fitted.law
    points = [Point(name, "in sample", loss, said) for name, loss, said in fitted.residuals]
    finished, _ = aligned(fitted.runs.finished)
    hidden = left_out(KINDS[law.kind], finished, units_for(finished), law.numbers)
    points += [Point(each.name, each.what, each.measured, each.predicted) for each in hidden]
    return _write(_view(law, tuple(points), None, why=fitted.why, findings=fitted.findings), target)


def write_rank_page(law: ScheduleLaw, ranking: dict[str, Any], target: Path) -> Path:
    """Write one self-contained page about a ranking (`rank_document`) to `target`, and return `target`."""
    embed.refuse_folder(target, "ranking.html")
    return _write(_view(law, _in_sample(law), ranking), target)


def chosen_by(folder: Path, prefix: str) -> LawView | None:
    """The law by which the schedule of the run in `folder` was chosen; None where there is none.

    `prefix` keeps the keys of its plots apart from those of other runs. KinfolkError for files that are damaged.
    """
    path = folder / PROBE / "law.json"
    if not path.is_file():
        return None
    law, ranking = load_law(path), None
    beside = folder / PROBE / "ranking.json"
    if beside.is_file():
        try:
            ranking = parse_json(beside.read_text("utf-8"))
            return _view(law, _in_sample(law), ranking, prefix)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KinfolkError(
                f"this is no ranking ({error})", where=str(beside), fix="delete it, or probe the schedule again"
            ) from error
    return _view(law, _in_sample(law), None, prefix)


def _write(view: LawView, target: Path) -> Path:
    return embed.write_page(embed.environment(), "schedule.html.jinja", target, list(view.plots), view=view)


def _in_sample(law: ScheduleLaw) -> tuple[Point, ...]:
    return tuple(
        Point(describe(run.settings.schedule()), "in sample", run.loss, float(law.predict(run.settings.schedule())[0]))
        for run in law.measured
    )


def _view(
    law: ScheduleLaw,
    points: tuple[Point, ...],
    ranking: dict[str, Any] | None,
    prefix: str = "",
    why: str | None = None,
    findings: tuple[str, ...] = (),
) -> LawView:
    shown = _shown(ranking) if ranking else ()
    named = [(each.place, each.schedule, each.document) for each in shown]
    features = contributions(law)
    plots = [scatter(points, prefix)] if points else []
    if ranking:
        plots += [forecasts(named, prefix), rate_curves(named, prefix)]
    if features:
        plots.append(weights(features, prefix))
    said = findings or (*law.cautions, *((ranking or {}).get("warnings") or ()))
    return LawView(law, why, points, ranking, shown, features, tuple(dict.fromkeys(said)), tuple(plots))


def _shown(ranking: dict[str, Any]) -> tuple[Candidate, ...]:
    """The first candidates, the first one that is refused, and the default."""
    every = ranking["candidates"]
    first = every[:SHOWN]
    refused = [each for each in every[SHOWN:] if each["risk"] == "refused"][:1]
    rows = [Candidate(str(each["rank"]), _described(each), each) for each in [*first, *refused]]
    return (*rows, Candidate("default", _described(ranking["default"]), ranking["default"]))


def _described(document: dict[str, Any]) -> str:
    return describe(settings_of(document).schedule())


def settings_of(document: dict[str, Any]) -> Settings:
    """The settings in one candidate of a ranking; KinfolkError if there are none."""
    try:
        return Settings.model_validate({key: document[key] for key in Settings.model_fields if key in document})
    except ValidationError as error:
        raise ValueError(f"a candidate has no settings: {error.errors()[0]['msg']}") from error
