"""kinfolk schedule"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption, WhereOption, conditions, numbers
from kinfolk.cli.progress import progress
from kinfolk.cli.schedule_advise import advise
from kinfolk.cli.schedule_peaks import compare_peaks
from kinfolk.cli.schedule_probe import probe
from kinfolk.cli.schedule_stability import predict_divergence

if TYPE_CHECKING:
    from kinfolk.schedule.law import KindName
    from kinfolk.schedule.shapes import NamedSchedule, Shape

schedule = typer.Typer(
    help="Fit laws of the learning-rate schedule to cheap runs, and choose a schedule with them.", no_args_is_help=True
)

schedule.command()(advise)

TokensPerStepOption = Annotated[float | None, typer.Option(help="Tokens of one optimizer step.")]
PageOption = Annotated[
    Path | None, typer.Option(metavar="FILE.html", help="Write a page about it.", show_default=False)
]
SettingsText = "steps=N,peak_lr=X,shape=linear,decay_fraction=0.2,end_ratio=0,warmup_steps=N"


@schedule.command()
def fit(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Tables of runs, loss curves (step, lr, loss), or run directories."),
    ],
    where: WhereOption = [],  # noqa: B006 (typer copies it)
    kind: Annotated[
        str, typer.Option(help="Law to use: auto (by data and held-out error), or the name of one.")
    ] = "auto",
    size: Annotated[float | None, typer.Option(help="Parameters of the model, if the runs do not say it.")] = None,
    tokens_per_step: TokensPerStepOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the law to this JSON file.")] = None,
    page: PageOption = None,
    json_: JsonOption = False,
) -> None:
    """Fit every kind of law that the runs allow, test each on runs left out, and keep the one to trust."""
    only = conditions(where)
    wanted = _kind(kind)
    _refuse_folder(page)
    with progress("reading and fitting") as report:
        from kinfolk.schedule.fitted import fit_document, fit_runs
        from kinfolk.schedule.runs import read_runs

        fitted = fit_runs(
            read_runs(runs, only=only), wanted, size=size, tokens_per_step=tokens_per_step, progress=report
        )
    if output is not None:
        from kinfolk.schedule.law import save_law

        save_law(output, fitted.law)
    if page is not None:
        from kinfolk.report.schedule_law import write_fit_page

        write_fit_page(fitted, page)
    if json_:
        print(json.dumps(fit_document(fitted), indent=2, allow_nan=False))
        return
    from kinfolk.cli.schedule_tables import print_fit

    print_fit(fitted)
    for written in (output, page):
        if written is not None:
            print(f"written: {written}")


@schedule.command()
def predict(
    law: Annotated[Path, typer.Argument(metavar="LAW", help="A file that `schedule fit --output` wrote.")],
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A table of schedules, or a curve (step, lr).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table with the added columns to this CSV file.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Add `predicted`, `low` and `high` (90 %) to a table of schedules or to the points of a curve."""
    from kinfolk.schedule.law import load_law
    from kinfolk.schedule.predict import as_csv, predict_document

    document = predict_document(load_law(law), runs)
    if output is not None:
        from kinfolk.files import write_text

        write_text(output, as_csv(document))
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.schedule_tables import print_predictions

    print_predictions(document)
    if output is not None:
        print(f"written: {output}")


@schedule.command()
def rank(
    law: Annotated[Path, typer.Option(metavar="LAW", help="A file that `schedule fit --output` wrote.")],
    tokens: Annotated[float | None, typer.Option(help="Training tokens of the run to plan.")] = None,
    size: Annotated[float | None, typer.Option(help="Parameters of its model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Its optimizer steps, in place of --tokens.")] = None,
    tokens_per_step: TokensPerStepOption = None,
    peaks: Annotated[
        str | None, typer.Option(metavar="X,Y,...", help="Peak rates; by default the fitted ones.")
    ] = None,
    shapes: Annotated[str | None, typer.Option(metavar="A,B,...", help="Decay shapes.")] = None,
    decay_fractions: Annotated[str | None, typer.Option(metavar="X,Y,...", help="Shares of the decay.")] = None,
    end_ratios: Annotated[str | None, typer.Option(metavar="X,Y,...", help="Last rates over the peak.")] = None,
    warmup_steps: Annotated[str | None, typer.Option(metavar="N,M,...", help="Steps of the warm-up.")] = None,
    default: Annotated[
        str | None,
        typer.Option(metavar="SETTINGS", help="What you would use without a law, as in peak_lr=1e-3,shape=linear,..."),
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="SETTINGS", help=f"A finished run to extend, as in {SettingsText}.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates to show in the table.")] = 12,
    page: PageOption = None,
    json_: JsonOption = False,
) -> None:
    """Rank schedules for a run: forecasts, what cannot be told apart, risk of divergence, when to change nothing."""
    from kinfolk.schedule.candidates import SHAPES, Grid, candidates
    from kinfolk.schedule.law import load_law
    from kinfolk.schedule.rank import horizon, rank_document
    from kinfolk.schedule.rank import rank as rank_schedules

    _refuse_folder(page)
    loaded = load_law(law)
    planned, notes = horizon(loaded, tokens, steps, tokens_per_step)
    grid = Grid(
        peaks=numbers(peaks, "--peaks"),
        shapes=_shapes(shapes) or SHAPES,
        decay_fractions=numbers(decay_fractions, "--decay-fractions"),
        end_ratios=numbers(end_ratios, "--end-ratios"),
        warmup_steps=[int(value) for value in numbers(warmup_steps, "--warmup-steps") or []] or None,
    )
    ranking = rank_schedules(
        loaded,
        candidates(loaded, planned, grid),
        tokens=tokens,
        size=size,
        default=_settings(default, "--default", planned) if default else None,
        after=_settings(after, "--after") if after else None,
        notes=notes,
    )
    if page is not None:
        from kinfolk.report.schedule_law import write_rank_page

        write_rank_page(loaded, rank_document(ranking), page)
    if json_:
        print(json.dumps(rank_document(ranking), indent=2, allow_nan=False))
        return
    from kinfolk.cli.schedule_tables import print_ranking

    print_ranking(ranking, top)
    if page is not None:
        print(f"written: {page}")


def _refuse_folder(page: Path | None) -> None:
    """KinfolkError for a page that could not be written, before anything is fitted for it."""
    if page is not None:
        from kinfolk.report.embed import refuse_folder

        refuse_folder(page, "schedule-law.html")


schedule.command()(probe)
schedule.command("peaks")(compare_peaks)
schedule.command("stability")(predict_divergence)


def _kind(text: str) -> "KindName":
    from kinfolk.errors import KinfolkError
    from kinfolk.schedule.kinds import KINDS

    if text != "auto" and text not in KINDS:
        raise KinfolkError(f"{text!r} is no kind of law", where="--kind", fix=f"use auto or one of {', '.join(KINDS)}")
    return text  # type: ignore[return-value]


def _shapes(text: str | None) -> "list[Shape]":
    from kinfolk.errors import KinfolkError
    from kinfolk.schedule.shapes import SHAPES

    wanted = [part.strip() for part in (text or "").split(",") if part.strip()]
    odd = [part for part in wanted if part not in SHAPES]
    if odd:
        raise KinfolkError(f"{odd[0]!r} is no shape", where="--shapes", fix=f"use some of {', '.join(SHAPES)}")
    return [shape for part in wanted for shape in SHAPES if shape == part]


def _settings(text: str, where: str, steps: int | None = None) -> "NamedSchedule":
    """A schedule written as FIELD=VALUE,...; of `steps` steps unless it says so itself."""
    from kinfolk.errors import KinfolkError
    from kinfolk.laws.tables import Row
    from kinfolk.schedule.settings import FIELDS, settings_schedule

    parts = [part.strip() for part in text.split(",") if part.strip()]
    values = dict(part.split("=", 1) for part in parts if "=" in part)
    odd = [part for part in parts if part.split("=", 1)[0] not in FIELDS or "=" not in part]
    if odd:
        raise KinfolkError(f"{odd[0]!r} is no setting", where=where, fix=f"write {SettingsText}")
    if steps is not None:
        values = {"steps": str(steps), **values}
    missing = [field for field in ("steps", "peak_lr") if field not in values]
    if missing:
        raise KinfolkError(f"{missing[0]} is missing", where=where, fix=f"write {SettingsText}")
    return settings_schedule(Row("settings", values), {field: field for field in values}, Path(where))[0]
