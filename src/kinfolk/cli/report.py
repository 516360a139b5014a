"""kinfolk report"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.errors import KinfolkError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default report.html in the first run.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page to this machine's browsers, live, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of --watch; 0 for any that is free.", show_default="8421")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side; or serve it live."""
    if watch:
        if output is not None:
            raise KinfolkError("--watch writes no file", where="--output", fix="leave --output out, or --watch")
        _watch(runs, 8421 if port is None else port, json_)
        return
    if port is not None:
        raise KinfolkError("nothing is served without --watch", where="--port", fix="add --watch")
    from kinfolk.report.page import write_report

    page = write_report(runs, output or runs[0] / "report.html")
    print(json.dumps({"report": str(page)}) if json_ else f"report:  {page}")


def _watch(runs: list[Path], port: int, json_: bool) -> None:
    from rich.console import Console

    from kinfolk.report.watch.live import LiveReport
    from kinfolk.report.watch.server import Server

    console = Console(stderr=True)

    def say(message: str) -> None:
        console.print(message, soft_wrap=True, highlight=False, markup=False)

    with Server(LiveReport(runs), port, lambda: say("the build is finished; the page stays until Ctrl-C")) as server:
        print(json.dumps({"url": server.url}) if json_ else f"report:  {server.url}  (Ctrl-C ends it)", flush=True)
        for run in runs:
            if not run.is_dir():
                say(f"{run} does not exist yet: waiting for it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
