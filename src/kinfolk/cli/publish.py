"""kinfolk publish"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.cli.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kinfolk.publish.publish import Publication


def publish(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL", help="Run directory, member or any checkpoint folder.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="Repository; {member} and {family} stand for names.")
    ],
    base_model: Annotated[
        list[str], typer.Option(metavar="OWNER/NAME", help="What it was made from, for the card (repeatable).")
    ] = [],  # noqa: B006
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public; by default it is private.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and ask nobody.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what is unfinished, or was trained on patches last.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Upload finished models to the Hugging Face hub: weights, config, tokenizer and card, and nothing else."""
    from rich.console import Console

    from kinfolk.errors import KinfolkError

    asks = not (yes or dry_run)
    if asks and (json_ or not sys.stdin.isatty()):
        raise KinfolkError("nobody is there to be asked", fix="give --yes to upload, or --dry-run to look first")
    with Console(stderr=True).status("looking at the files"):
        from kinfolk.publish.publish import Published, plan_publications
        from kinfolk.publish.publish import publish as send

        publications = plan_publications(source, to, base_model, force)
    if dry_run:
        if json_:
            _print_json([Published(each, "dry run").to_dict() for each in publications])
            return
        _show(publications, {each.repository: each.names for each in publications}, public)
        return

    def confirm(lacking: "Mapping[str, Sequence[str]]") -> bool:
        if not json_:
            _show(publications, lacking, public)
        return yes or typer.confirm("upload?")

    if json_ or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()
    made = send(publications, not public, confirm)
    if json_:
        _print_json([each.to_dict() for each in made])
        return
    if not made:
        print("nothing was uploaded")
    for each in made:
        print(f"{each.publication.repository}: {each.status}" + (f", {each.url}" if each.url else ""))


def _print_json(values: list[dict[str, object]]) -> None:
    print(json.dumps(values, indent=2, allow_nan=False))


def _show(publications: "Sequence[Publication]", lacking: "Mapping[str, Sequence[str]]", public: bool) -> None:
    rows = []
    for each in publications:
        for name, size in sorted(each.sizes().items()):
            what = "to upload" if name in lacking[each.repository] else "is there"
            rows.append([each.repository, name, f"{size:,}", what])
    kind = "public" if public else "private"
    print_table(f"models on the hub, {kind}", ["repository", "file", "bytes", ""], rows, left=(0, 1, 3))
    for each in publications:
        if each.card is None:
            print(f"{each.folder}: the card was edited, and goes up as it is")
        if each.left_out:
            print(f"{each.folder}: stays here: {', '.join(each.left_out)}")
