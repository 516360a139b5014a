"""Arguments that several commands share."""

from typing import Annotated

import typer

FamilyArgument = Annotated[str, typer.Argument(metavar="FAMILY", help="A family file, or the name of a preset.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, as in --set recipe.seed=3.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
