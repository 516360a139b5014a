"""The live report: what the server answers, and a page in a browser while its run grows."""

import http.client
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from micro import RecordingView, exit_code, family, start_child
from synthetic_run import Maker
from typer.testing import CliRunner

from kinfolk.build.auto import build_family
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.report.watch import live
from kinfolk.report.watch.live import LiveReport
from kinfolk.report.watch.server import Server


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSE", 0.0)


@contextmanager
def serving(*runs: Path) -> Iterator[Server]:
    with Server(LiveReport(runs), 0, lambda: None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=20)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


def put(source: Path, target: Path) -> None:
    """Bring a run to the state of another one, as a build that goes on would."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def test_page_is_made_anew_only_when_files_changed(make_run: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    run, later = make_run(stop_at=(1, 100)), make_run("later", stop_at=(1, 200))
    made: list[object] = []
    original = live.write_report
    monkeypatch.setattr(live, "write_report", lambda *given: made.append(given) or original(*given))
    with serving(run) as server:
        status, headers, page = ask(server, "/")
        assert status == 200 and "100 of 687 steps" in page and "plotly.js v" in page
        status, headers, update = ask(server, "/update")
        assert status == 200 and "100 of 687 steps" in update and len(update) < 1e6 and "plotly.js v" not in update
        assert float(headers["Seconds-Since-Change"]) < 60
        tag = headers["ETag"]
        assert tag.strip('"') in page
        (run / "stages/medium/checkpoints").mkdir()
        (run / "stages/medium/checkpoints/state.json").write_text("{}", "utf-8")
        assert ask(server, "/update", If_None_Match=tag)[0] == 304
        assert len(made) == 1
        put(later, run)
        status, headers, update = ask(server, "/update", If_None_Match=tag)
        assert status == 200 and "200 of 687 steps" in update and headers["ETag"] != tag
        assert len(made) == 2


def test_half_written_files_and_missing_ones(make_run: Maker, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    whole = make_run("whole")
    with serving(run) as server:
        assert "Waiting for demo" in ask(server, "/")[2] and "there is no such run" in ask(server, "/update")[2]
        run.mkdir(parents=True)
        (run / "ledger.jsonl").write_text('{"event": "data_prep', "utf-8")
        assert "family.yaml is missing" in ask(server, "/update")[2]
        shutil.copy(whole / "family.yaml", run)
        (run / "plan.json").write_text('{"family"', "utf-8")
        assert "not JSON" in ask(server, "/update")[2]
        shutil.copy(whole / "plan.json", run)
        assert "0 of 3 models built" in ask(server, "/update")[2]
        put(whole, run)
        with open(run / "stages/large/metrics.jsonl", "ab") as metrics:
            metrics.write('{"step": 12, "lo\u00e4'.encode()[:-1])
        status, _, page = ask(server, "/update")
        assert status == 200 and "3 models built" in page and 'data-page="finished"' in page
        # What was whole a moment ago stays, and the reader is told.
        (run / "plan.json").unlink()
        status, _, page = ask(server, "/update")
        assert status == 200 and "3 models built" in page and "plan.json is missing" in page


def test_a_second_run_may_come_later(make_run: Maker, tmp_path: Path) -> None:
    run, other = make_run(), tmp_path / "runs" / "alone"
    with serving(run, other) as server:
        page = ask(server, "/")[2]
        assert "3 models built" in page and "alone: there is no such run" in page and 'data-page="building"' in page
        make_run("alone", "independent")
        page = ask(server, "/update")[2]
        assert "at least as good as its independent twin" in page and 'data-problem=""' in page


def test_whatever_goes_wrong_the_page_stays_and_says_so(make_run: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(name) for name in ("one", "two", "three")]
    wrong: dict[str, str] = {}
    read, write = live.read_run, live.write_report

    def read_or_fail(run: Path) -> Any:
        if run.name in wrong:
            raise RuntimeError(wrong[run.name])
        return read(run)

    def write_or_fail(given: Any, target: Path) -> Path:
        if wrong and ("pages" in wrong or wrong.keys() & {run.name for run in given}):
            raise RuntimeError(wrong.get("pages", "no such page"))
        return write(given, target)

    monkeypatch.setattr(live, "read_run", read_or_fail)
    monkeypatch.setattr(live, "write_report", write_or_fail)
    with serving(*runs) as server:
        whole = ask(server, "/")[2]
        assert 'data-problem=""' in whole and 'data-page="finished"' in whole
        for changed, (faults, told) in enumerate(
            [
                ({"two": "a figure is missing"}, "two: a figure is missing"),
                ({"two": "a figure is missing", "pages": "disk full"}, "two: a figure is missing; disk full"),
                ({"pages": "disk full"}, "disk full"),
            ]
        ):
            wrong.clear()
            wrong.update(faults)
            (runs[0] / f"changed{changed}.json").write_text("{}", "utf-8")
            status, _, page = ask(server, "/update")
            assert status == 200 and f'data-problem="{told}"' in page
            assert "3 models built" in page


def test_lines_that_no_build_has_written_do_not_begin_it_again(make_run: Maker) -> None:
    run = make_run()
    with open(run / "ledger.jsonl", "a", encoding="utf-8") as ledger:
        ledger.write('{"event": 5}\n{"event": "stage_finished"}\n')
    assert LiveReport([run]).finished()
    (run / "ledger.jsonl").unlink()
    assert not LiveReport([run]).finished()


@pytest.mark.parametrize("path", ["/plan.json", "/../../etc/passwd", "/%2e%2e/x", "/?x", "/update/", "/report.html"])
def test_nothing_but_the_page_is_served(make_run: Maker, path: str) -> None:
    with serving(make_run()) as server:
        status, _, body = ask(server, path)
        assert status == 404 and "nothing here" in body


def test_other_hosts_and_methods_are_refused(make_run: Maker) -> None:
    with serving(make_run()) as server:
        assert server.server_address[0] == "127.0.0.1"
        for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1"):
            assert ask(server, "/", Host=host)[0] == 403
        assert ask(server, "/update", Host="localhost:9000")[0] == 200
        connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=20)
        connection.request("POST", "/", body="x")
        assert connection.getresponse().status == 501


def test_port_that_is_taken_is_named(make_run: Maker) -> None:
    run = make_run()
    with serving(run) as server, pytest.raises(KinfolkError, match="cannot be used"):
        Server(LiveReport([run]), int(server.server_address[1]), lambda: None)


@pytest.mark.parametrize(
    ("options", "message"), [(["--port", "0"], "without --watch"), (["--watch", "-o", "x.html"], "writes no file")]
)
def test_options_that_do_not_go_together(make_run: Maker, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["report", str(make_run()), *options])
    assert isinstance(result.exception, KinfolkError) and message in str(result.exception)


def test_a_real_build_is_watched_from_before_it_begins(tmp_path: Path) -> None:
    loaded, run = family(tmp_path), tmp_path / "run"
    said = tmp_path / "watch.log"
    watch = start_child(lambda: app(["report", str(run), "--watch", "--port", "0", "--json"]), said)
    try:
        url = json.loads(_line(said, 0))["url"]
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)[1])  # type: ignore[index]
        assert _line(said, 1).endswith("run does not exist yet: waiting for it")
        seen = [_state(port)]
        build = start_child(lambda: build_family(loaded, run, RecordingView()), tmp_path / "build.log")
        while os.waitpid(build, os.WNOHANG) == (0, 0):
            seen.append(_state(port))
            time.sleep(0.1)
        assert "build_finished" in (run / "ledger.jsonl").read_text("utf-8"), (tmp_path / "build.log").read_text()
        assert "the build is finished" in _line(said, 2)
        assert seen[0] == "waiting" and "building" in seen and set(seen) <= {"waiting", "building", "finished"}
        os.kill(watch, signal.SIGINT)
        assert exit_code(watch) == 0
        watch = 0
        assert len(said.read_text("utf-8").splitlines()) == 3
    finally:
        if watch:
            os.kill(watch, signal.SIGKILL)


def _line(file: Path, number: int) -> str:
    """A line of a file, once it is there."""
    for _ in range(2000):
        lines = file.read_text("utf-8").split("\n") if file.exists() else []
        if len(lines) > number + 1:
            return lines[number]
        time.sleep(0.05)
    raise AssertionError(f"{file.name} has no line {number + 1}")


def _state(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/update")
    answer = connection.getresponse()
    assert answer.status == 200
    found = re.search(r'data-page="(\w+)"', answer.read().decode())
    connection.close()
    assert found
    return found[1]


def open_tab(browser: Any, url: str, width: int = 1280) -> tuple[Any, list[str]]:
    problems: list[str] = []
    tab = browser.new_context(viewport={"width": width, "height": 844}).new_page()
    tab.set_default_timeout(120_000)
    tab.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
    tab.goto(url)
    return tab, problems


def until(tab: Any, condition: str) -> None:
    """Wait until a condition holds; playwright's own way of waiting is one that the page's policy forbids."""
    for _ in range(2000):
        try:
            if tab.evaluate(condition):
                return
        except Exception as error:  # the page that waits is left for the report at any moment
            if "context was destroyed" not in str(error):
                raise
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


NOW = "document.dispatchEvent(new Event('visibilitychange'))"
"""Have the page ask at once, and not in two seconds."""

STATE = """() => {
    const plot = document.querySelector('figure[data-plot=loss] .plot');
    return [document.querySelector('figure[data-plot=cost]').getBoundingClientRect().top,
            plot._fullLayout.xaxis.range, plot._fullLayout.yaxis.range, plot._fullLayout.xaxis.title.text,
            plot.data.filter(trace => !trace.visible).map(trace => trace.legendgroup),
            document.querySelector('figure[data-plot=loss] details').open, document.activeElement.textContent,
            document.documentElement.dataset.theme, document.querySelector('#costs-1').closest('.scroll').scrollLeft];
}"""


def test_a_run_that_grows_keeps_the_readers_place(browser: Any, make_run: Maker) -> None:
    run = make_run(stop_at=(0, 100))
    states: list[Callable[[], Path]] = [
        lambda: make_run("second", stop_at=(1, 300)), lambda: make_run("third", stop_at=(2, 500)),
        lambda: make_run("whole"),
    ]  # fmt: skip
    with serving(run) as server:
        tab, problems = open_tab(browser, server.url)
        tab.wait_for_selector("figure[data-plot=loss] .main-svg")
        assert tab.locator("#watch").inner_text().startswith("Live")
        put(states[0](), run)
        tab.evaluate(NOW)
        until(tab, "document.querySelectorAll('figure[data-plot=loss] .scatterlayer .js-line').length === 2")
        whole = tab.evaluate(STATE)
        # The reader chooses an axis, zooms, switches a curve off, opens a part, scrolls, and goes dark.
        tab.get_by_role("button", name="Dark colours").click()
        tab.locator("figure[data-plot=loss]").get_by_role("button", name="matmul").click()
        tab.locator("figure[data-plot=loss] summary").click()
        box = tab.locator("figure[data-plot=loss] .nsewdrag").bounding_box()
        tab.mouse.move(box["x"] + 100, box["y"] + 100)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 400, box["y"] + 250, steps=4)
        tab.mouse.up()
        tab.locator("figure[data-plot=loss] .legend button").first.click()
        tab.evaluate("document.querySelector('#costs-1').closest('.scroll').scrollLeft = 40")
        tab.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        tab.locator("figure[data-plot=cost] [data-view=matmul]").focus()
        tab.evaluate("window.marked = document.querySelector('figure[data-plot=loss] .main-svg')")
        before = tab.evaluate(STATE)
        assert set(before[4]) == {"0/small"} and before[5] is True and before[7] == "dark"
        assert before[1] != whole[1] and before[2] != whole[2]
        put(states[1](), run)
        tab.evaluate(NOW)
        until(tab, "document.querySelector('.headline').textContent.includes('2 of 3 models')")
        top, *rest = tab.evaluate(STATE)
        assert rest == before[1:] and abs(top - before[0]) < 2
        assert tab.evaluate("document.querySelector('figure[data-plot=loss] .main-svg') === window.marked")
        assert "500 of" in tab.locator("tr[data-stage=large]").inner_text()
        assert "2 of 3 models built" in tab.locator(".headline").inner_text()
        put(states[2](), run)
        tab.evaluate(NOW)
        until(tab, "document.querySelector('#watch').textContent.includes('finished')")
        assert "3 models built for" in tab.locator(".headline").inner_text()
        assert tab.locator("#watch").inner_text() == "The build is finished"
        assert tab.evaluate("[document.querySelectorAll('#members-1, #members tr[data-member]').length]") == [4]
        # What was merged is what a fresh visit gives.
        words = "document.querySelector('main').textContent.replace(/\\s+/g, ' ')"
        fresh, more = open_tab(browser, server.url, 390)
        fresh.wait_for_selector("figure[data-plot=loss] .main-svg")
        for each in (tab, fresh):
            each.evaluate("document.querySelectorAll('details').forEach(part => { part.open = false; })")
            each.evaluate("document.querySelectorAll('.plot').forEach(plot => Plotly.purge(plot))")
        merged, whole_page = tab.evaluate(words), fresh.evaluate(words)
        place = next((i for i, (a, b) in enumerate(zip(merged, whole_page, strict=False)) if a != b), None)
        assert merged == whole_page, (merged[place - 100 : place + 200], whole_page[place - 100 : place + 200])
        assert fresh.evaluate("document.documentElement.scrollWidth") <= 390
        assert not problems + more
    tab.evaluate(NOW)
    until(tab, "document.querySelector('#watch').textContent.includes('has ended')")


def test_the_page_that_waits_becomes_the_report(browser: Any, make_run: Maker, tmp_path: Path) -> None:
    with serving(tmp_path / "runs" / "demo") as server:
        tab, problems = open_tab(browser, server.url, 390)
        assert tab.locator("h1").inner_text() == "Waiting for demo"
        assert tab.locator("#watch").inner_text() == "Waiting for the build to begin"
        make_run(stop_at=(0, 0))
        tab.evaluate(NOW)
        until(tab, "document.querySelector('#watch').dataset.page === 'building'")
        assert tab.locator("figure[data-plot=loss]").is_hidden()
        put(make_run("second", stop_at=(0, 60)), tmp_path / "runs" / "demo")
        tab.evaluate(NOW)
        # A figure that had nothing to show is drawn, and its controls work.
        tab.wait_for_selector("figure[data-plot=loss] .scatterlayer .js-line")
        tab.locator("figure[data-plot=loss]").get_by_role("button", name="matmul").click()
        axis = "document.querySelector('figure[data-plot=loss] .plot')._fullLayout.xaxis.title.text"
        assert "matmul" in tab.evaluate(axis)
        assert not problems
