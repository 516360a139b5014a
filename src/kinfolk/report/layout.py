"""The look of every plot: type, grid, legend and axes, with colours as names of the page's CSS variables."""

import html
import math
from collections.abc import Iterable
from typing import Any, Literal


def layout(
    x_title: str,
    y_title: str,
    x_range: list[float] | None = None,
    y_range: list[float] | None = None,
    exponents: Literal["B", "SI"] = "SI",
    x_type: Literal["log", "linear"] = "log",
) -> dict[str, Any]:
    """A plotly layout; `x_range` of a logarithmic axis in powers of ten, both ranges None for all that is drawn."""
    shared = {
        "gridcolor": "--grid",
        "linecolor": "--rule",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "--rule",
    }
    return {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "--ink"},
        "paper_bgcolor": "--paper",
        "plot_bgcolor": "--paper",
        "margin": {"l": 56, "r": 12, "t": 12, "b": 52},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--rule", "font": {"color": "--ink"}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "xaxis": {
            **shared,
            "title": {"text": x_title},
            "type": x_type,
            "exponentformat": exponents,
            "nticks": 8,
            "minorloglabels": "complete",
            **({"range": x_range} if x_range else {}),
        },
        "yaxis": {
            **shared,
            "title": {"text": y_title, "standoff": 8},
            "automargin": True,
            **({"range": y_range} if y_range else {}),
        },
        "showlegend": True,
    }


def decades(values: Iterable[float]) -> list[float]:
    """The range of a logarithmic axis that holds these values, in powers of ten."""
    logs = [math.log10(value) for value in values]
    margin = max(0.05, 0.04 * (max(logs) - min(logs)))
    return [min(logs) - margin, max(logs) + margin]


def as_shown(text: str) -> str:
    """Text that plotly shows as it is: it reads a subset of HTML, and %{...} as a variable."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")
