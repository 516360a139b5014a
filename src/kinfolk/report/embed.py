"""What every page holds: plotly, our own script, the figures as data, and a policy that lets nothing else run."""

import base64
import errno
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.report import numbers
from kinfolk.report.figures import Plot

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f]")
"""Characters that HTML forbids."""

OURS = ("legend.js", "plots.js", "stages.js", "page.js")
"""Our own scripts in the order in which they run; they share one global, `kinfolk`."""


def refuse_folder(target: Path, example: str) -> None:
    """KinfolkError where the page's target is a folder; called before any work is done for the page."""
    if target.is_dir():
        raise KinfolkError("this is a folder", where=str(target), fix=f"give the name of a file, such as {example}")


def write_page(environment: Environment, template: str, target: Path, plots: Sequence[Plot], **fields: Any) -> Path:
    """Write one self-contained page to `target`, and return `target`; KinfolkError where that is not possible."""
    ours = scripts()
    page = environment.get_template(template).render(
        n=numbers,
        plots=plots,
        plot_data=plot_data(plots),
        plot_columns=plot_columns(plots),
        scripts=ours,
        hashes=hashes(ours),
        **fields,
    )
    try:
        files.write_text(target, as_text(page))
    except OSError as error:
        fix = "free some space" if error.errno == errno.ENOSPC else "give a place you may write to"
        raise KinfolkError(f"the page cannot be written ({error.strerror})", where=str(target), fix=fix) from error
    return target


def environment() -> Environment:
    """The templates, with every value escaped and none forgotten."""
    return Environment(
        loader=PackageLoader("kinfolk.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def scripts() -> list[Markup]:
    """Plotly and our own code, in the order in which they run."""
    folder = Path(__file__).parent / "templates"
    return [_plotly(), *(_script((folder / name).read_text("utf-8")) for name in OURS)]


def hashes(texts: Sequence[str]) -> list[str]:
    """Source expressions by which a page's policy lets these scripts run, and no others."""
    return ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]


def plot_data(plots: Sequence[Plot]) -> Markup:
    """The figures as JSON that cannot end the element it stands in."""
    return as_json({plot.key: plot.views for plot in plots if not plot.empty})


def plot_columns(plots: Sequence[Plot]) -> Markup:
    """The values that views of one figure share, by the figure."""
    return as_json({plot.key: plot.columns for plot in plots if plot.columns and not plot.empty})


def as_json(value: dict[str, Any]) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def as_text(page: str) -> str:
    """The page without what is no text: halves of surrogate pairs, and the control characters that HTML forbids."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", page.encode("utf-8", "replace").decode())


def _script(text: str) -> Markup:
    """Our own code or plotly's, as it may stand between script tags."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return Markup(CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text))


@cache
def _plotly() -> Markup:
    return _script(get_plotlyjs())
