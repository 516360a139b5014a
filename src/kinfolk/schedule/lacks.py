"""What the runs of a fit do not have and a ranking would need."""

from collections.abc import Sequence

import numpy as np

from kinfolk.schedule.features import Units
from kinfolk.schedule.points import curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import NamedSchedule, rates, warmup_of


def lacks(runs: Sequence[Run], units: Units) -> list[str]:
    """One sentence for each thing that is missing."""
    found = []
    shapes = {
        run.schedule.shape for run in runs if isinstance(run.schedule, NamedSchedule) and run.schedule.decay_steps
    }
    named = all(isinstance(run.schedule, NamedSchedule) for run in runs)
    families = {run.family for run in runs}
    has_points = any(len(curve_points(run, units)[0]) for run in runs)
    if named and shapes == {"cosine"}:
        found.append(
            "only cosine schedules were fitted: on public runs a law from cosines alone ranks other shapes badly "
            "(rank correlation 0.6 to 0.8); add two decay shares of another shape"
        )
    elif named and len(families) == 1:
        found.append(f"only one schedule shape was fitted ({next(iter(families))}): others are an extrapolation")
    if all(np.all(np.diff(rates(run.schedule)[warmup_of(run.schedule) :]) >= 0) for run in runs):
        found.append("no fitted rate ever falls: nothing can be said of decays")
    if len({run.peak for run in runs}) == 1:
        found.append("only one peak was fitted: nothing can be said of other peaks")
    if len({run.steps for run in runs}) == 1 and not has_points:
        found.append("only one horizon was fitted, without curves: nothing can be said of other horizons")
    if all(run.end_ratio < 0.01 for run in runs) and not has_points:
        found.append("every run ends at a rate of 0: nothing can be said of other ends")
    return found
