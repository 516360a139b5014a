"""What `evaluate --tasks` and `consistency --tasks` share: running the tasks, and tables of what came out."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfolk.cli.progress import progress
from kinfolk.cli.tables import print_table
from kinfolk.errors import KinfolkError

if TYPE_CHECKING:
    from kinfolk.evaluate.tasks import TaskResult


def wants_tasks(tasks: Sequence[str], of_tasks: dict[str, Any], of_text: dict[str, Any]) -> bool:
    """Whether a command is to run tasks. KinfolkError for options of tasks without them, and of texts beside them."""
    useless = [name for name, value in (of_text if tasks else of_tasks).items() if value]
    if useless and tasks:
        raise KinfolkError(f"{useless[0]} is about a text, and --tasks is given", fix="leave one of the two out")
    if useless:
        raise KinfolkError(f"{useless[0]} is about tasks, and none is named", fix="give --tasks TASK,...")
    return bool(tasks)


def evaluate_tasks(
    models: Sequence[str],
    tasks: Sequence[str],
    task_data: Path | None,
    limit: int | None,
    batch_size: int,
    force: bool,
    json_: bool,
) -> None:
    """Run models on tasks, keep the results in their runs, and show them."""
    results = _run(models, tasks, task_data, limit, batch_size, force)
    from kinfolk.evaluate.task_record import FORMAT, keep, records

    found = records(results)
    if json_:
        print(json.dumps({"format": FORMAT, "results": found}, indent=2, allow_nan=False))
    else:
        _print_figures(found)
    for path in keep(results):
        _say(f"kept in {path}")


def compare_tasks(
    models: Sequence[str],
    tasks: Sequence[str],
    task_data: Path | None,
    limit: int | None,
    batch_size: int,
    force: bool,
    json_: bool,
) -> None:
    """Run models on tasks and show, for every two of them, on which questions they differ in being right."""
    results = _run(models, tasks, task_data, limit, batch_size, force, at_least=2)
    from kinfolk.evaluate.task_flips import task_flips
    from kinfolk.evaluate.task_record import keep

    flips = task_flips(results)
    keep(results)
    if json_:
        print(json.dumps({"models": list(dict.fromkeys(result.path for result in results)), "flips": flips}, indent=2))
        return
    if not flips:
        raise KinfolkError(
            "none of the tasks has answers that are right or wrong", fix="choose a task with such a metric"
        )
    _print_flips(flips)


def _run(
    models: Sequence[str],
    tasks: Sequence[str],
    task_data: Path | None,
    limit: int | None,
    batch_size: int,
    force: bool,
    at_least: int = 1,
) -> list["TaskResult"]:
    """Each member, or other checkpoint, on each task. KinfolkError where lm-eval is not installed."""
    from rich.console import Console

    names = [name.strip() for part in tasks for name in part.split(",") if name.strip()]
    console = Console(stderr=True)
    with console.status("starting lm-eval"), _no_warnings():
        _check_installed()
        from kinfolk.evaluate.measure import members_of
        from kinfolk.evaluate.task_names import load_tasks
        from kinfolk.evaluate.task_record import check
        from kinfolk.evaluate.tasks import TaskSettings, run_tasks
    paths = list(dict.fromkeys(path for model in models for path in members_of(model)))
    if len(paths) < at_least:
        raise KinfolkError(
            f"{len(paths)} model to compare", fix="give two models or more, or a run with several members"
        )
    check(paths)
    with console.status("reading the tasks and their questions"):
        asked = load_tasks(names, task_data)
    with progress("starting") as report:
        results, known = run_tasks(paths, asked, TaskSettings(limit, batch_size, force), report)
    if known:
        _say(f"{known} of {len(results)} results known from before, of the same weights and task")
    _warn_of_cuts(results)
    return results


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Some of what lm-eval imports reports on parts of itself that nobody here uses."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _check_installed() -> None:
    try:
        import accelerate  # noqa: F401  (lm-eval's Hugging Face models need it)
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise KinfolkError(
            f"tasks are run by EleutherAI's lm-eval, and {error.name} is not installed",
            fix="pip install 'kinfolk[tasks]'",
        ) from error


def _warn_of_cuts(results: Sequence["TaskResult"]) -> None:
    for result in results:
        whole = result.figures[0] if result.figures else {"cut": 0}
        if whole["cut"]:
            _say(
                f"{Path(result.path).name}: {whole['cut']:,} of {whole['requests']:,} texts of {result.task} lost "
                "their beginning, for they do not fit the model's context"
            )


def _print_figures(found: Sequence[dict[str, Any]]) -> None:
    asked = [record for record in found if record["part_of"] is None]
    paths = list(dict.fromkeys(record["model"] for record in asked))
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for record in asked:
        label = record["metric"] if record["filter"] == "none" else f"{record['metric']} ({record['filter']})"
        arrow = {True: " ↑", False: " ↓"}.get(record["higher_is_better"], "")
        rows.setdefault((record["task"], label + arrow, f"{record['examples']:,}"), {})[record["model"]] = record
    names = short_names(paths)
    cells = [[*row, *(_cell(by_model.get(path)) for path in paths)] for row, by_model in rows.items()]
    headings = ["task", "metric", "examples", *(names[path] for path in paths)]
    print_table("90 % intervals over examples", headings, cells, left=(0, 1))


def _cell(record: dict[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "-"
    if record["interval"] is None:
        return _figure(record["value"])
    low, high = record["interval"]
    return f"{_figure(record['value'])} ({_figure(low)} to {_figure(high)})"


def _figure(value: float) -> str:
    """Four decimals, as lm-eval prints, as long as that is readable."""
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"


def _print_flips(flips: Sequence[dict[str, Any]]) -> None:
    names = short_names([path for flip in flips for path in (flip["first"], flip["second"])])
    rows = [
        [
            f"{names[flip['first']]}, {names[flip['second']]}",
            flip["task"],
            flip["metric"] if flip["filter"] == "none" else f"{flip['metric']} ({flip['filter']})",
            f"{flip['items']:,}",
            f"{flip['right_before']['share']:.4f}",
            f"{flip['right_after']['share']:.4f}",
            *(_rate(flip[kind]) for kind in ("flips", "negative_flips", "positive_flips")),
        ]
        for flip in flips
    ]
    headings = (
        "p, q",
        "task",
        "metric",
        "examples",
        "p right",
        "q right",
        "flips",
        "p right, q wrong",
        "q right, p wrong",
    )
    print_table("prediction flips, 90 % intervals over examples", headings, rows, left=(0, 1, 2))


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['share']:.4f}" + ("" if rate["low"] is None else f" ({rate['low']:.4f} to {rate['high']:.4f})")


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Last parts of the paths, where they tell the models apart."""
    short = {path: Path(path).name for path in paths}
    return short if len(set(short.values())) == len(set(paths)) else {path: path for path in paths}


def _say(message: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(message, soft_wrap=True, highlight=False)
