"""What every plot of a page is: plotly figures in plain JSON, and the reader's choices among them.

Colours are names of the page's CSS variables; the page's script puts in their values, so that a plot follows the theme.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kinfolk.report.run import Run

COLOURS = 7
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square-open", "triangle-up", "diamond-open")


@dataclass(frozen=True)
class Plot:
    """One figure: a view for each of the reader's choices, and the same in words."""

    key: str
    title: str
    views: dict[str, dict[str, Any]]
    """Plotly figures by what is chosen; the first is drawn first."""
    summary: str
    empty: bool
    choices: tuple[tuple[str, ...], ...] = ()
    """Groups of which one each is chosen; a view's name joins these by commas. By default one group of all."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Values that several views draw: a trace with a string for `x`, `y` or `customdata` names one of these."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The choices that there are."""
        return tuple(group for group in self.choices or (tuple(self.views),) if len(group) > 1)


def stage_colours(runs: Sequence[Run]) -> dict[str, str]:
    """One CSS variable for each name of a stage, the same in every run: twins look alike."""
    names = dict.fromkeys(stage.plan.name for run in runs for stage in run.stages)
    return {name: f"--series-{index % COLOURS + 1}" for index, name in enumerate(names)}


def short(value: float) -> float:
    """Six significant digits: more cannot be seen."""
    return float(f"{value:.6g}")
