"""Writes the page about a fitted law: its plots, its parameters, and what the runs cannot tell."""

import math
from pathlib import Path

from kinfolk.laws.fitted import NAMES, LawFit
from kinfolk.laws.shown import shown_parameter
from kinfolk.report import embed
from kinfolk.report.law_figures import loss_against_compute, price_of_the_split, residuals_against_compute


def write_law_page(fitted: LawFit, target: Path) -> Path:
    """Write one self-contained HTML page about `fitted` to `target`, and return `target`."""
    embed.refuse_folder(target, "law.html")
    calibration = fitted.law.calibration
    return embed.write_page(
        embed.environment(),
        "laws.html.jinja",
        target,
        [loss_against_compute(fitted), residuals_against_compute(fitted), price_of_the_split(fitted)],
        fitted=fitted,
        parameters=[(name, *shown_parameter(fitted, name)) for name in NAMES],
        interval=math.expm1(calibration.half_width) if calibration else None,
        reach=math.exp(calibration.reach) if calibration else None,
    )
