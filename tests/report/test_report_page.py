"""The page as a file: its figures, its escaping, its size, and what it says about runs that are not whole."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Maker, make_plan

from kinfolk.errors import KinfolkError
from kinfolk.report import embed
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>&amp;\u2028"


class Page(HTMLParser):
    """Collects the cells, texts and elements that tests look at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.figures: dict[tuple[str, str], float] = {}
        """Exact values by (row or nothing, name of the figure)."""
        self.ids: list[str] = []
        self._open: list[str] = []
        self._row = ""
        self._figure: str | None = None
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "tr":
            self._row = found.get("data-stage") or found.get("data-member") or ""
        self._figure = found.get("data-figure", self._figure)
        if tag in ("div", "section"):
            self._figure = None
        if tag == "data" and self._figure:
            self.figures.setdefault((self._row, self._figure), float(found["value"] or "nan"))
            self._figure = None

    def handle_endtag(self, tag: str) -> None:
        self._row = "" if tag == "tr" else self._row
        self._open = (
            self._open[: len(self._open) - 1 - self._open[::-1].index(tag)] if tag in self._open else self._open
        )

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.words.append(data)


def report(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0].parent.parent / "report.html"))


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text("utf-8").splitlines()]


def test_figures_are_the_ledgers(make_run: Maker) -> None:
    run = make_run()
    page, plan = report(run), json.loads((run / "plan.json").read_text("utf-8"))
    finished = [event for event in events(run) if event["event"] == "stage_finished"]
    for event in finished:
        assert page.figures[event["stage"], "six-nd"] == event["flops"]["six_nd"]
        assert page.figures[event["stage"], "matmul"] == event["flops"]["matmul"]
        assert page.figures[event["stage"], "tokens"] == event["tokens"]
        assert page.figures[event["stage"], "seconds"] == event["seconds"]
    total = sum(event["flops"]["six_nd"] for event in finished)
    assert page.figures["", "total-six-nd"] == page.figures["", "spent-six_nd"] == total
    for kind in ("six_nd", "matmul"):
        assert page.figures["", f"saving-{kind}"] == pytest.approx(plan["saving"][kind], rel=1e-12)
    members = [event for event in events(run) if event["event"] == "member_finished"]
    for event in members:
        assert page.figures[event["member"], "loss"] == event["held_out"]["loss"]
        assert page.figures[event["member"], "perplexity"] == event["held_out"]["perplexity"]
        assert page.figures[event["member"], "bits-per-byte"] == event["held_out"]["bits_per_byte"]
        assert event["sha256"] in page.text
    for before, event in pairwise(members):
        assert page.figures[before["member"], "kl"] == event["kl_from_previous"]["kl_small_to_large"]
    assert "was not measured" in page.text and "--strategy independent" in page.text
    assert "kinfolk build examples/demo.yaml" in page.text


def test_page_is_whole_and_small(make_run: Maker) -> None:
    page = report(make_run())
    sections = [found["id"] for tag, found in page.tags if tag == "section"]
    expected = "answer loss stages cost members consistency tasks schedule growth samples warnings environment"
    assert sections == expected.split()
    assert len(page.source.encode()) < 8e6
    assert page.source.count("plotly.js v") == 1
    assert len(page.ids) == len(set(page.ids))
    for _, found in page.tags:
        assert not {"src", "srcset", "onclick", "onerror"} & set(found)
        assert (found.get("href") or "#").startswith(("#", "data:"))
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all("scope" in found for tag, found in page.tags if tag == "th")
    assert all(found.get("aria-label") for _, found in page.tags if found.get("role") == "img")


def test_same_run_gives_the_same_page(make_run: Maker) -> None:
    run = make_run()
    assert report(run).source == report(run).source


def test_unfinished_run_says_so(make_run: Maker) -> None:
    run = make_run(stop_at=(1, 300))
    with open(run / "ledger.jsonl", "a", encoding="utf-8") as ledger:
        ledger.write('{"event": "stage_fin')
    with open(run / "stages/medium/metrics.jsonl", "a", encoding="utf-8") as metrics:
        metrics.write('{"step": 301, "lo')
    page = report(run)
    assert "Not finished yet: 1 of 3 models built" in page.text
    assert "Stage medium is not finished: 300 of 687 steps are done." in page.text
    assert "Stage large has not been started." in page.text
    assert "Stage medium was interrupted once." in page.text
    assert "could not be read in line 9" in page.text
    assert "1 damaged lines in the metrics of stage medium" in page.text
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    small, medium = (stage["flops"]["six_nd"] for stage in plan["stages"][:2])
    assert page.figures["", "spent-six_nd"] == pytest.approx(small + medium * 300 / 687)


def test_run_that_only_began(make_run: Maker) -> None:
    run = make_run(stop_at=(0, 0))
    (run / "ledger.jsonl").write_text("", "utf-8")
    page = report(run)
    assert "Not finished yet: 0 of 3 models built" in page.text
    assert "No member is finished yet." in page.text and "Nothing has been grown yet." in page.text
    assert "Loss of every stage: nothing has been recorded yet" in page.text


def test_comparison_with_independent_twins(make_run: Maker) -> None:
    page = report(make_run(), make_run("alone", "independent"))
    assert "Every member is at least as good as its independent twin" in page.text
    seconds = [
        sum(event["seconds"] for event in events(run) if event["event"] in ("stage_finished", "grown"))
        for run in (make_run("again"), make_run("alone again", "independent"))
    ]
    assert page.figures["", "saving-seconds"] == pytest.approx(1 - seconds[0] / seconds[1])


@pytest.mark.parametrize(
    ("change", "quality"),
    [(0.0, "yes"), (0.009, "undecided"), (0.05, "no"), ("bytes", "not comparable"), ("unfinished", "waiting")],
)
def test_verdict_on_quality(make_run: Maker, change: float | str, quality: str) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        held_out = next(event for event in ledger if event.get("member") == "medium")["held_out"]
        if isinstance(change, float):
            for key in ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high"):
                held_out[key] *= 1 + change
        elif change == "bytes":
            held_out["bytes"] += 1

    baseline = make_run("alone", "independent", stop_at=(2, 5) if change == "unfinished" else None)
    page = report(make_run(edit=edit), baseline)
    assert [found["data-quality"] for _, found in page.tags if "data-quality" in found] == [quality]


def test_seconds_of_different_machines_are_not_compared(make_run: Maker) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        ledger[0]["machine"]["cpus"] = 64

    page = report(make_run(), make_run("alone", "independent", edit=edit))
    assert ("", "saving-seconds") not in page.figures
    assert "alone ran on another machine" in page.text


def test_warnings(make_run: Maker) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        grown = next(event for event in ledger if event["event"] == "grown")
        grown["verification"].update(passed=False)
        grown["verification"]["float64"]["max_abs_logit_difference"] = float("nan")
        at = ledger.index(grown)
        ledger.insert(at + 2, {"event": "stage_resumed", "stage": "medium", "step": 1200, "time": 1.76e9})

    page = report(make_run(edit=edit))
    assert "The growth into medium claims to keep the function and did not" in page.text
    assert "claimed, failed" in page.text and "nan" in page.text
    assert "Stage medium was resumed once, at step 1,200." in page.text
    assert "large has read its training data 5.5 times over" in page.text


def test_twin_of_another_budget_is_told(make_run: Maker) -> None:
    plan = make_plan("independent")
    plan["stages"][1]["tokens"] += 16384
    page = report(make_run(), make_run("alone", plan=plan))
    assert page.text.count("was not trained on the tokens that this run counts") == 1
    assert "The twin of medium in alone" in page.text


def test_hostile_text_is_inert(make_run: Maker) -> None:
    plan = make_plan("progressive")
    for stage in plan["stages"]:
        if stage["parent"] == "small":
            stage["parent"] = "small<b>"
        if stage["name"] == "small":
            stage["name"] = "small<b>"
    plan["family"] = HOSTILE

    def edit(ledger: list[dict[str, Any]]) -> None:
        ledger[0]["command"] = HOSTILE
        ledger[0]["versions"][HOSTILE] = HOSTILE
        for event in ledger:
            for sample in event.get("samples", ()):
                sample.update(prompt=HOSTILE, continuation=HOSTILE + "\ud800\x00\x1b[0m")
            if event["event"] == "member_finished":
                event.update(member=HOSTILE, path=HOSTILE, sha256=HOSTILE)

    run = make_run("<i>name", plan=plan, edit=edit)
    (run / "family.yaml").write_text(HOSTILE, "utf-8")
    page = report(run)
    assert sum(tag == "script" for tag, _ in page.tags) == 2 + len(embed.scripts())
    assert not {"img", "i", "b"} & {tag for tag, _ in page.tags}
    assert "window.hacked=1</script>" in page.text
    assert "\x00" not in page.source and "\x1b" not in page.source
    data = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page.source, re.DOTALL)
    assert data
    assert "small&lt;b&gt;" in json.dumps(json.loads(data[1]))


def test_runs_of_one_folder_name_are_told_apart(make_run: Maker, tmp_path: Path) -> None:
    first, second = make_run("a/run"), make_run("b/run", "independent")
    page = Page(write_report([first, second], tmp_path / "report.html"))
    assert "a/run" in page.text and "b/run" in page.text


@pytest.mark.parametrize("name", ["family.yaml", "plan.json", "ledger.jsonl"])
def test_missing_file_is_named(make_run: Maker, name: str) -> None:
    run = make_run()
    (run / name).unlink()
    with pytest.raises(KinfolkError, match=f"{name} is missing"):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.json", "{", "not JSON"),
        ("plan.json", "[]", "plan.json"),
        ("plan.json", '{"family": "x"}', "strategy: Field required"),
        ("ledger.jsonl", '\n{"event": "stage_finished", "stage": "small"}', r"line 2 \(stage_finished\): steps"),
    ],
)
def test_garbled_file_is_named(make_run: Maker, name: str, text: str, message: str) -> None:
    run = make_run()
    (run / name).write_text(text, "utf-8")
    with pytest.raises(KinfolkError, match=message):
        read_run(run)


def test_parent_that_is_no_stage_is_named(make_run: Maker) -> None:
    plan = make_plan("progressive")
    plan["stages"][1]["parent"] = "nobody"
    with pytest.raises(KinfolkError, match="'medium' comes from 'nobody'"):
        read_run(make_run(plan=plan, stop_at=(0, 0)))


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    with pytest.raises(KinfolkError, match="no such run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(KinfolkError, match="no run to report on"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
