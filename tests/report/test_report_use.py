"""The page in use: its controls by mouse and by keyboard, and what screen readers make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, visit

LOSS = "document.querySelector('figure[data-plot=loss] .plot')"


def ledger(report: Path, run: str, kind: str) -> list[dict[str, Any]]:
    lines = (report.parent / run / "ledger.jsonl").read_text("utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_what_the_browser_shows_is_what_the_ledger_says(seen: Visit, report: Path) -> None:
    page = seen.page
    finished = ledger(report, "demo", "stage_finished") + ledger(report, "alone", "stage_finished")
    for figure, value in (
        ("six-nd", lambda event: event["flops"]["six_nd"]),
        ("seconds", lambda each: each["seconds"]),
    ):
        cells = page.locator(f"#cost tr[data-stage] [data-figure={figure}] data").all()
        assert [float(cell.get_attribute("value")) for cell in cells] == [value(event) for event in finished]
    members = ledger(report, "demo", "member_finished") + ledger(report, "alone", "member_finished")
    cells = page.locator("#members [data-figure=bits-per-byte] data").all()
    assert [float(cell.get_attribute("value")) for cell in cells] == [
        event["held_out"]["bits_per_byte"] for event in members
    ]
    diamonds = "trace => trace.marker?.symbol === 'diamond'"
    drawn = f"{LOSS}._fullData.filter({diamonds}).map(trace => [trace.x[0], trace.y[0]])"
    costs = [event["flops"]["six_nd"] for event in finished]
    ends = [costs[0], costs[0] + costs[1], sum(costs[:3]), *costs[3:]]
    losses = [event["held_out"]["loss"] for event in members]
    for found, expected in zip(page.evaluate(drawn), zip(ends, losses, strict=True), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_controls_of_a_plot(seen: Visit) -> None:
    page = seen.page
    figure = page.locator("figure[data-plot=loss]")
    script = (
        f"(({{xaxis, yaxis}}) => [xaxis.type, xaxis.title.text, yaxis.title.text, yaxis.range])({LOSS}._fullLayout)"
    )
    kind, x, y, (_, top) = page.evaluate(script)
    assert kind == "log" and "6ND" in x and "nats per token" in y
    figure.get_by_role("button", name="log x").press("Enter")
    figure.get_by_role("button", name="time", exact=True).click()
    figure.get_by_role("button", name="whole loss range").click()
    kind, x, y, (_, after) = page.evaluate(script)
    assert kind == "linear" and "time" in x and "nats per token" in y and after > top
    figure.get_by_role("button", name="bits per byte").click()
    assert "bits per byte" in page.evaluate(script)[2] and "time" in page.evaluate(script)[1]
    assert not seen.problems


def test_zoom_by_buttons_and_keys(seen: Visit) -> None:
    page = seen.page
    figure = page.locator("figure[data-plot=loss]")
    script = f"{LOSS}._fullLayout.yaxis.range"
    low, high = page.evaluate(script)
    figure.get_by_role("button", name="zoom in").click()
    nearer = page.evaluate(script)
    assert nearer[1] - nearer[0] == pytest.approx(0.6 * (high - low))
    figure.locator(".plot").press("ArrowUp")
    raised = page.evaluate(script)
    assert raised[0] > nearer[0] and raised[1] - raised[0] == pytest.approx(nearer[1] - nearer[0])
    figure.locator(".plot").press("0")
    assert page.evaluate(script) == [low, high]
    assert not seen.problems


def test_curves_are_hidden_by_their_key(seen: Visit) -> None:
    page = seen.page
    lines = page.locator("figure[data-plot=loss] .scatterlayer .js-line")
    key = page.locator("figure[data-plot=loss] .legend").get_by_role("button", name="medium, demo")
    key.press("Space")
    assert lines.count() == 5
    assert key.get_attribute("aria-pressed") == "false" and key.evaluate("key => key === document.activeElement")
    page.locator("figure[data-plot=loss]").get_by_role("button", name="tokens").click()
    assert lines.count() == 5, "what is hidden stays hidden on another axis"
    key.press("Space")
    assert lines.count() == 6
    assert not seen.problems


def test_a_stage_is_chosen_by_mouse_and_keys(seen: Visit) -> None:
    page = seen.page
    tree = page.locator("[data-tree]").first

    def shown() -> list[str]:
        return [each.get_attribute("data-detail") for each in tree.locator(".detail").all() if each.is_visible()]

    assert shown() == ["large"]
    tree.locator("a[data-stage=small]").click()
    assert shown() == ["small"] and "from scratch, seed 0" in tree.locator(".detail").first.inner_text()
    page.keyboard.press("ArrowDown")
    assert shown() == ["medium"]
    assert page.evaluate("document.activeElement.dataset.stage") == "medium"
    assert tree.locator("[aria-current]").get_attribute("data-stage") == "medium"
    tree.get_by_role("button", name="only its lineage").press("Enter")
    drawn = "trace => trace.mode === 'lines' && trace.visible === true"
    names = f"{LOSS}._fullData.filter({drawn}).map(trace => trace.name)"
    assert page.evaluate(names) == ["small, demo", "medium, demo"]
    tree.get_by_role("button", name="only its lineage").press("Enter")
    assert len(page.evaluate(names)) == 6
    assert not seen.problems


def test_a_reader_without_a_mouse_gets_everywhere(seen: Visit) -> None:
    page = seen.page
    page.reload()
    page.wait_for_selector(".plot .main-svg")
    page.keyboard.press("Tab")
    skip = "document.activeElement.className"
    assert page.evaluate(skip) == "skip" and page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#answer"
    reached, unseen = set(), []
    look = """() => { const it = document.activeElement, box = it.getBoundingClientRect(), style = getComputedStyle(it);
        const section = it.closest('section')?.id || '', isMarked = style.outlineStyle !== 'none';
        return [section, box.width * box.height > 0, isMarked, it.outerHTML.slice(0, 80)] }"""
    for _ in range(400):
        page.keyboard.press("Tab")
        section, is_drawn, is_marked, what = page.evaluate(look)
        if what.startswith("<body"):
            break
        reached.add(section)
        unseen += [] if is_drawn and is_marked else [what]
    assert unseen == []
    everywhere = {section.get_attribute("id") for section in page.locator("main > section").all()}
    assert everywhere - reached <= {"tasks", "samples", "warnings"}, "these have nothing to press"
    assert not seen.problems


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_no_fault_that_axe_knows(browser: Any, report: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(browser, report, width, scheme).page
    # What is drawn in a plot is one picture to a screen reader, with words of its own.
    found = axe.Axe().run(page, context={"exclude": [[".plot .main-svg"]]}).response["violations"]
    assert [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in found] == []


def test_a_page_without_scripts_shows_every_stage(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(report.as_uri())
    assert all(each.is_visible() for each in page.locator(".detail").all()) and page.locator(".detail").count() == 6
    assert "at least as good" in page.locator("#answer").inner_text()
