"""kinfolk card"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption


def card(
    models: Annotated[list[str], typer.Argument(metavar="RUN|MEMBER...", help="Run directories, or members of one.")],
    json_: JsonOption = False,
) -> None:
    """Write the cards of finished members anew, with results of tasks, training time, hardware and commands."""
    from rich.console import Console

    from kinfolk.errors import KinfolkError

    with Console(stderr=True).status("reading the run"):
        from kinfolk.build.renew import is_member, renewed_card, write_renewed
        from kinfolk.evaluate.measure import members_of

        folders = [Path(path) for model in models for path in members_of(model)]
        for folder in folders:
            if not is_member(folder):
                raise KinfolkError("not a member of a run", where=str(folder), fix="give RUN, or RUN/members/MEMBER")
        texts = [renewed_card(folder) for folder in folders]
        made = [write_renewed(folder, text) for folder, text in zip(folders, texts, strict=True)]
    if json_:
        print(json.dumps([{"folder": str(f), "written": is_new} for f, is_new in zip(folders, made, strict=True)]))
        return
    for folder, is_new in zip(folders, made, strict=True):
        print(f"{folder / 'README.md'}{'' if is_new else ': was edited, and is left as it is'}")
