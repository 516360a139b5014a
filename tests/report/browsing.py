"""Pages in a browser without a network; needs `chromium` on the path and the package `playwright`."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_run

from kinfolk.report.page import write_report

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; a test that asks for it is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Visit:
    page: Any
    problems: list[str] = field(default_factory=list)
    """Errors on the console, and requests for anything but the page."""


def visit(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Visit:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    context.set_default_timeout(120_000)  # for machines that have other things to do
    found = Visit(context.new_page())
    found.page.on("console", lambda message: found.problems.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.problems.append(str(error)))
    found.page.on(
        "request", lambda request: found.problems.append(request.url) if request.url != path.as_uri() else None
    )
    found.page.goto(path.as_uri())
    found.page.wait_for_selector(".plot .main-svg")
    return found


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a progressive run beside an independent one."""
    folder = tmp_path_factory.mktemp("report")
    runs = write_run(folder / "demo"), write_run(folder / "alone", "independent")
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def seen(browser: Any, report: Path) -> Visit:
    """One visit to the report, which the tests of a file share."""
    return visit(browser, report)
