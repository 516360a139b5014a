"""kinfolk report"""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default report.html in the first run.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side."""
    from kinfolk.report.page import write_report

    print(f"report:  {write_report(runs, output or runs[0] / 'report.html')}")
