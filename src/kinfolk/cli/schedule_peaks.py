"""kinfolk schedule peaks"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import FamilyArgument, JsonOption, SetOption


def compare_peaks(
    family: FamilyArgument,
    law: Annotated[
        list[Path],
        typer.Option(metavar="LAW", help="A file that `schedule fit --output` wrote (repeatable)."),
    ] = [],  # noqa: B006 (typer copies it)
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Show the peak learning rate of every member by every rule, by rate transfer and by fitted laws, side by side."""
    from kinfolk.family.load import load_family
    from kinfolk.plan.peaks import NamedLaw, peaks_document
    from kinfolk.schedule.law import load_law

    loaded = load_family(family, set_)
    document = peaks_document(loaded.family, [NamedLaw(path.name, load_law(path)) for path in law])
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.schedule_peaks_tables import print_peaks

    print_peaks(document)
