"""Writes the page about a designed family: its plots, members, costs, and what holds it."""

from pathlib import Path
from typing import Any

from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.design import Design
from kinfolk.report import embed
from kinfolk.report.design_figures import frontier, iso_flop, member_forecasts


def write_design_page(made: Design, chosen: ChosenLaw, document: dict[str, Any], target: Path) -> Path:
    """Write one self-contained HTML page to `target`, and return `target`; `document` is `design_document` of both."""
    embed.refuse_folder(target, "family.html")
    return embed.write_page(
        embed.environment(),
        "design.html.jinja",
        target,
        [member_forecasts(made, chosen), iso_flop(made, chosen), frontier(made, chosen)],
        document=document,
        forecast=document["forecast"],
        notes=_notes(document["forecast"]),
    )


def _notes(forecast: dict[str, Any]) -> list[str]:
    """What is to be said of the forecasts, each thing once, with the members that it is about."""
    about: dict[str, list[str]] = {}
    for member in forecast["members"]:
        for caution in member["cautions"]:
            about.setdefault(caution, []).append(member["member"])
    notes: list[str] = forecast["notes"]
    return notes + [f"{', '.join(names)}: {caution}" for caution, names in about.items()]
