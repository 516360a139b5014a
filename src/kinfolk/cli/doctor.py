"""kinfolk doctor"""

import json
from typing import Annotated, Any

import typer

from kinfolk.cli.options import JsonOption, SetOption


def doctor(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="What this family would need.")] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    json_: JsonOption = False,
) -> None:
    """What this machine has, and what a family would need of it."""
    from rich.console import Console

    from kinfolk.data.tokenizer import with_vocabulary
    from kinfolk.family.load import load_family

    # The family first: whoever mistyped it should not wait for the measurement.
    loaded = load_family(family, set_) if family is not None else None
    with Console(stderr=True).status("measuring this machine"):
        from kinfolk.build.doctor import examine_machine, needs_of

        machine = examine_machine()
    found: dict[str, Any] = {"machine": machine}
    if loaded is not None:
        found["family"] = needs_of(with_vocabulary(loaded), machine, loaded.origin)
    if json_:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    for title, facts in found.items():
        _print(title, facts)


def _print(title: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _shown(name, value))
    Console(width=None if Console().is_terminal else 140).print(table)


def _shown(name: str, value: Any) -> str:
    from kinfolk.build.view import duration

    if name.endswith("_bytes"):
        return f"{value / 2**30:,.2f} GiB"
    if name.endswith("_flops_per_second"):
        return f"{value / 1e9:,.0f} GFLOP/s"
    if name.endswith("seconds"):
        return duration(value)
    return str(value)
