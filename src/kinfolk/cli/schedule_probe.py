"""kinfolk schedule probe"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.live import is_main_process, live_view
from kinfolk.cli.machine import this_machine
from kinfolk.cli.options import FamilyArgument, JsonOption, SetOption, numbers
from kinfolk.cli.progress import progress
from kinfolk.errors import KinfolkError

if TYPE_CHECKING:
    from kinfolk.build.schedule_probe import Probed

TOP = 12
"""Candidates to show."""


def probe(
    family: FamilyArgument,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default runs/NAME-schedule-probe.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the family with its schedule to this new file, not into its own."),
    ] = None,
    price: Annotated[bool, typer.Option("--price", help="Only say what it costs.")] = False,
    share: Annotated[
        float | None, typer.Option(help="Share of the build's FLOPs that it may cost.", show_default="0.05")
    ] = None,
    peaks: Annotated[
        str | None, typer.Option(metavar="X,Y,...", help="Peak rates; by default half and twice the recipe's, and it.")
    ] = None,
    decay_shares: Annotated[
        str | None, typer.Option(metavar="X,Y,...", help="Decay shares; by default the recipe's and another.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    json_: JsonOption = False,
) -> None:
    """Choose a family's schedule by short runs of its smallest member, and write it into the family's recipe."""
    from kinfolk.family.load import load_family, preset_names

    # The family first: a mistake in it is told at once, and not after the seconds that importing torch takes.
    loaded = load_family(family, set_)
    if share is not None and not 0 < share <= 1:
        raise KinfolkError(f"{share:g} is no share", where="--share", fix="use for example 0.05")
    if not price:
        if output is None and family in preset_names():
            raise KinfolkError("a preset is not yours to change", where=family, fix="write to a file with --output")
        _refuse_target(family, output)

    from dataclasses import replace

    from kinfolk.data.tokenizer import with_vocabulary
    from kinfolk.plan.schedule_probe import SHARE, design_document, design_probe

    loaded = replace(loaded, family=with_vocabulary(loaded))
    design = design_probe(
        loaded.family,
        peaks=numbers(peaks, "--peaks"),
        decay_shares=numbers(decay_shares, "--decay-shares"),
        share=SHARE if share is None else share,
    )
    planned: dict[str, Any] = design_document(loaded.family, design)
    planned |= {"seconds": planned["price"]["flops"]["matmul"] / this_machine(), "refused": None}
    if is_main_process() and not json_:
        from kinfolk.cli.plan_tables import probe_line

        print(f"{loaded.family.name}: {probe_line(planned)}")
    if price:
        if json_:
            print(json.dumps({"family": loaded.family.name, "probe": planned}, indent=2, allow_nan=False))
        return

    from kinfolk.build.schedule_probe import conclude, run_probe
    from kinfolk.train.engine import start_engine

    folder = run or Path("runs") / f"{loaded.family.name}-schedule-probe"
    with live_view() as view, start_engine() as engine:
        run_probe(loaded, design, folder, view, engine)
    if not is_main_process():
        return
    with progress("reading and fitting") as report:
        probed = conclude(loaded, folder, report)
    written = _write(family, output, probed)
    if json_:
        from kinfolk.schedule.fitted import fit_document
        from kinfolk.schedule.rank import rank_document

        document = {
            "family": loaded.family.name,
            "probe": planned,
            "run": str(folder),
            "recipe": probed.chosen.model_dump(mode="json"),
            "written": None if written is None else str(written),
            "fit": fit_document(probed.fitted),
            "ranking": rank_document(probed.ranking),
        }
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    _show(probed, folder, written)


def _refuse_target(family: str, output: Path | None) -> None:
    """KinfolkError, before anything is trained, where the choice could not be written."""
    from kinfolk.family.load import family_text
    from kinfolk.plan.family_file import refuse_existing

    text, origin, _ = family_text(family)
    if output is not None:
        refuse_existing(output)
    elif not os.access(family, os.W_OK) or not os.access(Path(family).absolute().parent, os.W_OK):
        raise KinfolkError("may not be written to", where=family, fix="write to another file with --output")
    from kinfolk.family.edit import with_values

    with_values(text, {("recipe", "peak_learning_rate"): 1.0, ("recipe", "schedule", "decay_share"): 1.0}, origin)


def _write(family: str, output: Path | None, probed: "Probed") -> Path | None:
    """Write the chosen schedule; where, or None if the file says it already."""
    from kinfolk.family.edit import Place, Value, absolute_paths, with_values
    from kinfolk.family.load import family_text, load_family, parse_family
    from kinfolk.files import write_text

    chosen, (text, origin, folder) = probed.chosen, family_text(family)
    before = load_family(family)
    recipe, schedule = before.family.recipe, chosen.schedule
    said = (recipe.peak_learning_rate, recipe.schedule) == (chosen.peak_learning_rate, schedule)
    values: dict[Place, Value] = {}
    if before.auto_schedule or not said:
        values["recipe", "peak_learning_rate"] = chosen.peak_learning_rate
        for field in ("warmup_share", "decay_share", "decay_shape", "end_ratio"):
            values["recipe", "schedule", field] = getattr(schedule, field)
    if output is None and not values:
        return None
    target = output or Path(family)
    if target.absolute().parent != folder:
        values |= absolute_paths(text, folder)
    text = with_values(text, values, origin)
    found = parse_family(text, f"{target}, as it would be written").recipe
    if (found.peak_learning_rate, found.schedule) != (chosen.peak_learning_rate, schedule):
        raise KinfolkError(
            "the file would not say the chosen schedule", where=str(target), fix="leave schedule fields out of --set"
        )
    write_text(target, text)
    return target


def _show(probed: "Probed", folder: Path, written: Path | None) -> None:
    from kinfolk.cli.schedule_tables import print_ranking

    law = probed.fitted.law
    print(f"law: {law.kind} of {law.fitted.runs} runs, {law.stability.diverged} more diverged")
    print_ranking(probed.ranking, TOP)
    chosen = probed.chosen
    print(
        f"recipe: peak_learning_rate {chosen.peak_learning_rate:g}, {chosen.schedule.decay_shape}, decay_share "
        f"{chosen.schedule.decay_share:g}, end_ratio {chosen.schedule.end_ratio:g}, warmup_share "
        f"{chosen.schedule.warmup_share:g}"
    )
    print(f"written: {written}" if written else "the family file says so already and is left as it is")
    print(f"law and ranking: {folder}")
