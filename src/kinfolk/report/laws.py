"""Writes the page about a fitted law: its plots, its parameters, and what the runs cannot tell."""

import math
from pathlib import Path

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.laws.fitted import NAMES, LawFit
from kinfolk.report import embed, numbers
from kinfolk.report.law_figures import loss_against_compute, price_of_the_split, residuals_against_compute


def write_law_page(fitted: LawFit, target: Path) -> Path:
    """Write one self-contained HTML page about `fitted` to `target`, and return `target`."""
    if target.is_dir():
        raise KinfolkError("this is a folder", where=str(target), fix="give the name of a file, such as law.html")
    plots = [loss_against_compute(fitted), residuals_against_compute(fitted), price_of_the_split(fitted)]
    scripts = embed.scripts()
    page = (
        embed.environment()
        .get_template("laws.html.jinja")
        .render(
            fitted=fitted,
            parameters=[(name, *_value(fitted, name)) for name in NAMES],
            interval=math.expm1(fitted.law.calibration.half_width) if fitted.law.calibration else None,
            reach=math.exp(fitted.law.calibration.reach) if fitted.law.calibration else None,
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


def _value(fitted: LawFit, name: str) -> tuple[str, str]:
    """A parameter as the page shows it; no digits that the runs do not hold."""
    value = getattr(fitted.law, name)
    if fitted.borrowed_from and name in ("alpha", "beta"):
        return f"{value:.2g}", f"borrowed from {fitted.borrowed_from}"
    if not fitted.identification.identified:
        return f"{value:.2g}", "not known"
    if fitted.resampled is None:
        return f"{value:.2g}", "not resampled"
    low, high = fitted.resampled.interval(name)
    return f"{value:.3g}", f"{low:.3g} to {high:.3g}"
