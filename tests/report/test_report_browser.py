"""The page in a browser without a network: that it is whole, in every theme and width, whatever it is given."""

from pathlib import Path
from typing import Any

import pytest
from browsing import visit
from synthetic_run import Maker
from synthetic_schedules import end_measured, table, with_forecasts
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.report.page import write_report


def test_desktop_and_dark_mode(browser: Any, report: Path) -> None:
    seen = visit(browser, report)
    page = seen.page
    headings = page.locator("main > section > h2").all_inner_texts()
    assert headings == [
        "The answer", "Loss", "Stages", "Cost", "Members", "Consistency", "Tasks", "Schedule", "Growth checks",
        "Sample text", "Warnings", "Environment",
    ]  # fmt: skip
    assert [link.get_attribute("href") for link in page.locator("nav a").all()] == [
        f"#{section.get_attribute('id')}" for section in page.locator("main > section").all()
    ]
    assert page.locator("figure[data-plot=loss] .scatterlayer .js-line").count() == 6
    assert page.locator("figure[data-plot=cost] .bars .point").count() == 6
    assert page.locator(".tree circle").count() == 6

    def colours() -> list[str]:
        script = "[getComputedStyle(document.body).color, document.querySelector('.plot .js-line').style.stroke]"
        return page.evaluate(script)  # type: ignore[no-any-return]

    light = colours()
    page.get_by_role("button", name="Dark colours").click()
    page.wait_for_function("before => document.querySelector('.plot .js-line').style.stroke !== before", arg=light[1])
    assert colours()[0] != light[0]
    page.get_by_role("button", name="Light colours").click()
    assert colours()[0] == light[0]
    page.pdf()
    assert not seen.problems


def test_phone_in_the_dark(browser: Any, report: Path) -> None:
    seen = visit(browser, report, width=390, scheme="dark")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 20)"
    assert not seen.problems


def test_hostile_text_does_not_run(browser: Any, make_run: Maker, tmp_path: Path) -> None:
    hostile = (
        "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><a href=//x>%{x}" + "M" * 300
    )

    def edit(ledger: list[dict[str, Any]]) -> None:
        ledger[0]["command"] = hostile
        for event in ledger:
            if event["event"] == "member_finished":
                event.update(member=hostile, path=hostile)
                event["samples"] = [{"prompt": hostile, "continuation": hostile}]

    plan_name = "x<a href=javascript:window.hacked=1>y"
    run = make_run(plan_name, edit=edit)
    page = write_report([run, make_run("alone", "independent")], tmp_path / "report.html")
    seen = visit(browser, page, width=390)
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.locator("img, .plot a[href^=javascript]").count() == 0
    key = seen.page.locator("figure[data-plot=loss] .legend button").first
    assert key.text_content() == f"small, {plan_name}"
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not seen.problems


def test_unfinished_run(browser: Any, make_run: Maker, tmp_path: Path) -> None:
    seen = visit(browser, write_report([make_run(stop_at=(1, 40))], tmp_path / "report.html"))
    assert "Not finished yet" in seen.page.locator(".headline").inner_text()
    assert not seen.problems


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_the_page_of_a_plan(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "family.html"
    arguments = ["plan", "--budget", "1e20", "--sizes", "100M,200M,400M", "--strategy", "trunk", "--page", str(path)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    seen = visit(browser, path, width, scheme)
    page = seen.page
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 3")
    assert page.locator("figure[data-plot] h3").all_inner_texts() == [
        "Forecast of every member", "Sizes at equal compute", "What other budgets would buy"
    ]  # fmt: skip
    assert page.locator("figure[data-plot=members] .errorbar").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # No label of an axis lies on another one.
    overlaps = """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
        const boxes = [...plot.querySelectorAll('.xaxislayer-above text')].map(text => text.getBoundingClientRect());
        boxes.sort((a, b) => a.left - b.left);
        return boxes.slice(1).filter((box, i) => box.left < boxes[i].right - 1);
    }).length"""
    assert page.evaluate(overlaps) == 0
    assert not seen.problems


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_pages_of_a_schedule_law(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    def run(*arguments: object) -> None:
        assert CliRunner().invoke(app, ["schedule", *map(str, arguments)], catch_exceptions=False).exit_code == 0

    run("fit", table(tmp_path), "--kind", "sixteen", "--output", tmp_path / "law.json", "--page", tmp_path / "fit.html")
    run("rank", "--law", tmp_path / "law.json", "--steps", 9_000, "--page", tmp_path / "rank.html")
    titles = {
        "fit.html": ["Predicted against measured", "What sets schedules apart"],
        "rank.html": [
            "Candidates and their forecasts", "Rates of the first candidates", "Predicted against measured",
            "What sets schedules apart",
        ],
    }  # fmt: skip
    for name, expected in titles.items():
        seen = visit(browser, tmp_path / name, width, scheme)
        page = seen.page
        page.wait_for_function(f"document.querySelectorAll('.plot .main-svg').length >= {len(expected)}")
        assert page.locator("figure[data-plot] h3").all_inner_texts() == expected
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        kinds = "[...document.querySelectorAll('.plot')].map(plot => plot._fullLayout.xaxis.type)"
        assert set(page.evaluate(kinds)) == {"linear"}
        assert not seen.problems


def test_forecasts_while_training(browser: Any, make_run: Maker, tmp_path: Path) -> None:
    folder = make_run()
    with_forecasts(folder, "medium", end_measured(folder, "medium"))
    seen = visit(browser, write_report([folder], tmp_path / "report.html"), width=390)
    page = seen.page
    assert "Forecasts while training" in page.locator("main > section > h2").all_inner_texts()
    page.wait_for_selector("figure[data-plot=outlook] .js-line")
    assert page.locator("figure[data-plot=outlook] .scatterlayer .js-line").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not seen.problems
