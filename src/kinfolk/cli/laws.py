"""kinfolk laws"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption, WhereOption, conditions
from kinfolk.cli.progress import progress

if TYPE_CHECKING:
    from kinfolk.laws.runs import RunTable

laws = typer.Typer(
    help="Fit scaling laws to past runs, forecast with them, and test the forecasts.", no_args_is_help=True
)

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUNS...", help="A .csv or .parquet table of runs, or run directories.")
]
ParametersOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of model sizes.")]
TokensOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of training tokens.")]
LossOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of held-out losses.")]
FlopsOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of 6ND, if tokens are not given.")]
CountingOption = Annotated[str | None, typer.Option(help="What sizes count: total or non_embedding.")]


@laws.command()
def fit(
    runs: RunsArgument,
    parameters: ParametersOption = None,
    tokens: TokensOption = None,
    loss: LossOption = None,
    flops: FlopsOption = None,
    family: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of model families.")] = None,
    where: WhereOption = [],  # noqa: B006 (typer copies it)
    counting: CountingOption = None,
    borrow: Annotated[
        str, typer.Option(help="Law whose exponents are used where runs cannot tell them.")
    ] = "besiroglu",
    resamples: Annotated[int, typer.Option(min=0, help="Resamples for the parameters' intervals.")] = 200,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the law to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a page with plots to this HTML file.")] = None,
    json_: JsonOption = False,
) -> None:
    """Fit a loss law to runs: its parameters, how well they are known, how far it forecasts, which run to do next."""
    table = _table(runs, where, counting, parameters=parameters, tokens=tokens, loss=loss, flops=flops, family=family)
    with progress("reading and fitting") as report:
        from kinfolk.laws.fitted import fit_document, fit_runs

        fitted = fit_runs(table, borrow_from=borrow, resamples=resamples, progress=report)
    if output is not None:
        from kinfolk.laws.loss import save_law

        save_law(output, fitted.law)
    if plot is not None:
        from kinfolk.report.laws import write_law_page

        write_law_page(fitted, plot)
    if json_:
        print(json.dumps(fit_document(fitted), indent=2, allow_nan=False))
        return
    from kinfolk.cli.laws_tables import print_fit

    print_fit(fitted)
    for path in (output, plot):
        if path is not None:
            print(f"written: {path}")


@laws.command()
def predict(
    law: Annotated[str, typer.Argument(metavar="LAW", help="A file that `laws fit` wrote, or a published law's name.")],
    parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Model size, counted as the law counts it, as in 1e9 or 1B.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="D", help="Training tokens, as in 2e10 or 20B.")] = None,
    compute: Annotated[
        float | None, typer.Option(metavar="FLOPS", help="6ND FLOPs to split optimally, instead of both.")
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option("--loss", help="A loss to reach: by the least FLOPs, or by a model of --parameters."),
    ] = None,
    unique: Annotated[str | None, typer.Option(metavar="U", help="Different tokens, if some are repeated.")] = None,
    json_: JsonOption = False,
) -> None:
    """Forecast a loss with its interval, and what its split of compute costs against the optimal one."""
    from kinfolk.laws.choose import named_law
    from kinfolk.laws.forecast import predict_document
    from kinfolk.plan.wish import parse_count

    def count(text: str | None, where: str) -> float | None:
        return None if text is None else parse_count(text, where, 1e3, 1e20)

    document = predict_document(
        named_law(law),
        count(parameters, "--parameters"),
        count(tokens, "--tokens"),
        compute,
        count(unique, "--unique"),
        reach,
    )
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.laws_tables import print_prediction

    print_prediction(document)


@laws.command()
def backtest(
    runs: RunsArgument,
    parameters: ParametersOption = None,
    tokens: TokensOption = None,
    loss: LossOption = None,
    flops: FlopsOption = None,
    where: WhereOption = [],  # noqa: B006 (typer copies it)
    counting: CountingOption = None,
    below: Annotated[
        list[float], typer.Option(metavar="FLOPS", help="Fit runs below this compute; by default four quantiles.")
    ] = [],  # noqa: B006
    resamples: Annotated[
        int, typer.Option(min=0, help="Resamples of the bootstrap, for comparison; 0 for none.")
    ] = 100,
    json_: JsonOption = False,
) -> None:
    """Hide the largest runs, forecast them from the smaller ones, and report the errors and what the intervals held."""
    table = _table(runs, where, counting, parameters=parameters, tokens=tokens, loss=loss, flops=flops)
    with progress("reading and fitting") as report:
        from kinfolk.laws.backtest import backtest as hide_and_forecast
        from kinfolk.laws.backtest import backtest_document
        from kinfolk.laws.fitted import method_for

        splits = hide_and_forecast(
            table.parameters,
            table.tokens,
            table.loss,
            below or None,
            method=method_for(table),
            resamples=resamples,
            progress=lambda done, of: report("back-test", done, of),
        )
    document = backtest_document(splits) | {
        "source": table.source,
        "unit": table.unit,
        "findings": list(table.findings),
    }
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.laws_tables import print_backtest

    print_backtest(document)


@laws.command(name="list")
def list_(json_: JsonOption = False) -> None:
    """The published fits that kinfolk knows, with their citations."""
    from kinfolk.laws.published import LAWS

    if json_:
        print(json.dumps([law.model_dump(mode="json") for law in LAWS.values()], indent=2, allow_nan=False))
        return
    from kinfolk.cli.laws_tables import print_published

    print_published(list(LAWS.values()))


def _table(runs: list[Path], where: list[str], counting: str | None, **columns: str | None) -> "RunTable":
    from kinfolk.errors import KinfolkError
    from kinfolk.laws.columns import Choice
    from kinfolk.laws.runs import read_runs

    only = conditions(where)
    match counting:
        case None | "total" | "non_embedding":
            return read_runs(runs, Choice(**columns), only=only, counting=counting)
    raise KinfolkError(f"{counting!r} is no way of counting", where="--counting", fix="choose total or non_embedding")
