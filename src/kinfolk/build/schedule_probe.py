"""Choosing a schedule by trying: short runs of the smallest member, a law of them, and a ranking for its own steps."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kinfolk import files
from kinfolk.build.build import build
from kinfolk.build.run import LAW, BuildView
from kinfolk.data.tokenizer import with_vocabulary
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily
from kinfolk.family.spec import Family
from kinfolk.json_text import parse_json
from kinfolk.plan.document import plan_document
from kinfolk.plan.schedule_choice import Chosen, choose_schedule
from kinfolk.plan.schedule_probe import Design, schedule_probe, smallest_alone
from kinfolk.schedule.fitted import Progress, ScheduleFit, fit_runs
from kinfolk.schedule.law import save_law
from kinfolk.schedule.rank import Ranking, rank_document
from kinfolk.schedule.runs import read_runs
from kinfolk.train.engine import Engine

RANKING = "ranking.json"
"""Of a probe's run directory: the candidates in order, and the recipe that was chosen. Its law.json is the law."""


@dataclass(frozen=True)
class Probed:
    """What a probe has found."""

    chosen: Chosen
    fitted: ScheduleFit
    ranking: Ranking


def run_probe(loaded: LoadedFamily, design: Design, folder: Path, view: BuildView, engine: Engine) -> None:
    """Train the runs of a probe in the run directory `folder`, or what is still missing of them.

    A run that diverges is a result; the others go on. KinfolkError if another probe was begun in the folder.
    """
    family = smallest_alone(with_vocabulary(loaded), design.horizons[-1])
    probe = replace(loaded, family=family, auto_schedule=False)
    engine.on_main(partial(_refuse_another_probe, family, design, folder))
    build(probe, folder, view, partial(schedule_probe, design=design), engine=engine)


def conclude(loaded: LoadedFamily, folder: Path, progress: Progress | None = None) -> Probed:
    """Fit the runs of a finished probe, rank the family's candidates, and write both down.

    After that nothing needs the checkpoints of the runs, and they are removed.
    """
    fitted = fit_runs(read_runs([folder]), progress=progress)
    chosen, ranking = choose_schedule(with_vocabulary(loaded), fitted.law)
    save_law(folder / LAW, fitted.law)
    files.write_json(folder / RANKING, {"recipe": chosen.model_dump(mode="json"), **rank_document(ranking)})
    for checkpoints in folder.glob("stages/*/checkpoints"):
        shutil.rmtree(checkpoints)
    return Probed(chosen, fitted, ranking)


def _refuse_another_probe(family: Family, design: Design, folder: Path) -> None:
    path = folder / "plan.json"
    if not path.exists():
        return
    wanted = plan_document(family, schedule_probe(family, design))["stages"]
    try:
        begun = parse_json(path.read_text("utf-8"))["stages"]
        same = [_trained(stage) for stage in begun] == [_trained(stage) for stage in wanted]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise KinfolkError(
            "this run directory was begun with other runs than this probe has",
            where=str(folder),
            fix="use the same family file, --set values and options, or another --run",
        )


def _trained(stage: dict[str, Any]) -> tuple[Any, ...]:
    return stage["name"], stage["source"], stage["steps"], stage["tokens"], stage["rate"]
