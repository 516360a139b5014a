"""Writes the page about a designed family: its plots, members, costs, and what holds it."""

from pathlib import Path
from typing import Any

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.design import Design
from kinfolk.report import embed, numbers
from kinfolk.report.design_figures import frontier, iso_flop, member_forecasts


def write_design_page(made: Design, chosen: ChosenLaw, document: dict[str, Any], target: Path) -> Path:
    """Write one self-contained HTML page to `target`, and return `target`; `document` is `design_document` of both."""
    if target.is_dir():
        raise KinfolkError("this is a folder", where=str(target), fix="give the name of a file, such as family.html")
    plots = [member_forecasts(made, chosen), iso_flop(made, chosen), frontier(made, chosen)]
    scripts = embed.scripts()
    page = (
        embed.environment()
        .get_template("design.html.jinja")
        .render(
            document=document,
            forecast=document["plan"]["forecast"],
            n=numbers,
            plots=plots,
            plot_data=embed.plot_data(plots),
            scripts=scripts,
            hashes=embed.hashes(scripts),
        )
    )
    try:
        files.write_text(target, embed.as_text(page))
    except OSError as error:
        raise KinfolkError(
            f"the page cannot be written ({error.strerror})", where=str(target), fix="give a place you may write to"
        ) from error
    return target
