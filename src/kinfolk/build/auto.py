"""`schedule: auto`: a build that chooses the schedule first, by a probe, and records the choice.

The probe is a run directory of its own in the build's, RUN/schedule-probe, and shares its data. The choice stands in
the build's ledger (`schedule_chosen`) and, as plain fields, in its family.yaml; nothing behind this file knows `auto`.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kinfolk.build.build import build, refuse_unbuildable
from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import enter_run, holds_only_locks
from kinfolk.build.run import BuildView
from kinfolk.build.schedule_probe import conclude, run_probe
from kinfolk.data.tokenizer import with_vocabulary
from kinfolk.data.versions import prepare_versions
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily, with_absolute_paths
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.schedule_choice import Chosen
from kinfolk.plan.schedule_probe import design_probe, probe_price
from kinfolk.plan.strategies import plan_family
from kinfolk.train.engine import Engine, start_engine
from kinfolk.train.interruption import Interruption
from kinfolk.train.layout import Layout

PROBE = "schedule-probe"
"""Folder of the probe in the run directory of a build."""

CHOSEN = "schedule_chosen"
"""Event of the ledger: the schedule that the build goes on with."""


def build_family(
    loaded: LoadedFamily,
    folder: Path,
    view: BuildView,
    law: ChosenLaw | None = None,
    layout: Layout = Layout(),  # noqa: B008 (frozen)
    only: Sequence[str] = (),
) -> None:
    """Build a family, or with `only` these members of it, in the run directory `folder` as `kinfolk.build.build.build`
    does, with the schedule chosen first where its file leaves that to the build. Of several jobs, one chooses.
    """
    with start_engine(layout) as engine:
        if loaded.auto_schedule:
            with ExitStack() as held:
                interruption = held.enter_context(Interruption(second_stops=engine.world_size == 1).watched())
                if not engine.is_main:
                    held.enter_context(interruption.deferred())
                loaded = _with_chosen_schedule(loaded, folder, view, engine, only)
        build(loaded, folder, view, law=law, engine=engine, only=only)


def _with_chosen_schedule(
    loaded: LoadedFamily, folder: Path, view: BuildView, engine: Engine, only: Sequence[str]
) -> LoadedFamily:
    """The family with the schedule that was chosen in this run directory, or is now."""
    with ExitStack() as held:
        engine.on_main(partial(_claim, loaded, folder, view, engine, held, only))
        chosen = _recorded(loaded, folder)
        if chosen is None:
            family = with_vocabulary(loaded)
            design = design_probe(family)
            run_probe(loaded, design, folder / PROBE, view, engine)
            engine.on_main(lambda: _record(loaded, folder, view, probe_price(family, design)["flops"]))
            chosen = _recorded(loaded, folder)
            assert chosen is not None
    return replace(loaded, family=chosen.applied(loaded.family), auto_schedule=False)


def _claim(
    loaded: LoadedFamily, folder: Path, view: BuildView, engine: Engine, held: ExitStack, only: Sequence[str]
) -> None:
    """Take the run directory until `held` closes, and prepare the data of build and probe.

    Other jobs that are given members wait until then.
    """
    refuse_unbuildable(loaded, partial(plan_family, origin=loaded.origin), engine, only)
    family = with_vocabulary(loaded)
    price = probe_price(family, design_probe(family))
    existed = folder.exists() and not holds_only_locks(folder)
    enter_run(folder, bool(only), held, held, view.say)
    if Ledger(folder / "ledger.jsonl").events(CHOSEN):
        return
    if (folder / "family.yaml").exists():
        raise KinfolkError(
            "this run directory was begun with a schedule, and the family file leaves it to the build",
            where=str(folder),
            fix="write the schedule of its family.yaml into the family file, or use another --run",
        )
    view.say(
        f"schedule: auto  {price['runs']} short runs of {loaded.family.members[0].name} come first, for "
        f"{price['share']:.1%} of the FLOPs of the build"
    )
    try:
        prepare_versions(
            with_absolute_paths(loaded), loaded.folder, folder / "data", view.prepared, where=loaded.origin
        )
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    probe = folder / PROBE
    probe.mkdir(exist_ok=True)
    if not (probe / "data").is_symlink():
        (probe / "data").symlink_to(Path("..") / "data")


def _record(loaded: LoadedFamily, folder: Path, view: BuildView, flops: Any) -> None:
    """Conclude the probe, and write the choice into the ledger of the build."""
    probed = conclude(loaded, folder / PROBE)
    chosen = probed.chosen
    Ledger(folder / "ledger.jsonl").append(
        CHOSEN,
        **chosen.model_dump(mode="json"),
        default=_default(loaded.family),
        law=probed.fitted.law.kind,
        warnings=list(probed.ranking.warnings),
        probe=PROBE,
        flops=flops,
    )
    view.say(f"schedule: auto  {chosen.verdict}")


def _recorded(loaded: LoadedFamily, folder: Path) -> Chosen | None:
    """The choice in the ledger of a build; KinfolkError where it started from another recipe."""
    events = Ledger(folder / "ledger.jsonl").events(CHOSEN)
    if not events:
        return None
    event, default = events[-1], _default(loaded.family)
    if event["default"] != default:
        before, now = (f"{each['peak_learning_rate']:g}" for each in (event["default"], default))
        change = f"recipe.peak_learning_rate was {before} and is now {now}" if before != now else "its decay differs"
        raise KinfolkError(
            f"this run directory chose its schedule for another recipe: {change}",
            where=str(folder),
            fix="use the same family file and --set values, or another --run",
        )
    return Chosen.model_validate({name: event[name] for name in Chosen.model_fields})


def _default(family: Family) -> dict[str, Any]:
    """What the search starts from."""
    recipe = family.recipe
    return {
        "peak_learning_rate": recipe.peak_learning_rate,
        "schedule": recipe.schedule.model_dump(mode="json"),
    }
