"""What was measured of a run besides its losses: consistency, tasks, and what a reader is warned of."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Maker

from kinfolk.errors import KinfolkError
from kinfolk.report.answer import answer
from kinfolk.report.cautions import cautions
from kinfolk.report.consistency import alike
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run
from kinfolk.report.spikes import WINDOW, spikes
from kinfolk.report.tasks import task_plot


def warned(run: Path) -> list[tuple[str, str]]:
    read = read_run(run)
    return [(caution.level, caution.text) for caution in cautions([answer(read, [read])])]


def keep(run: Path, name: str, document: dict[str, Any]) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / name).write_text(json.dumps(document))


def kept_consistency(run: Path) -> dict[str, Any]:
    """In another order than the run's."""
    members = {member.member: member.sha256 for member in read_run(run).members}
    names = ["large", "small", "medium"]
    kl = [[0.0, 0.1, 0.2], [0.3, 0.0, 0.4], [0.5, 0.6, 0.0]]
    return {
        "format": 1,
        "members": [{"member": name, "sha256": members[name]} for name in names],
        "context_length": 256,
        "stride": 128,
        "matrices": {"kl": kl, "acceptance": [[1.0, 0.9, 0.8], [0.9, 1.0, 0.5], [0.8, 0.5, 1.0]]},
    }


def test_consistency_of_the_build_fills_the_matrix_both_ways(make_run: Maker) -> None:
    known = alike(read_run(make_run()))
    assert known and known.whole and not known.stale
    kl, same = known.matrices
    assert kl.members == ("small", "medium", "large")
    assert kl.rows[0][1] == pytest.approx(0.18) and kl.rows[1][0] == pytest.approx(0.21)
    assert kl.rows[0][2] == pytest.approx(0.36) and kl.rows[2][0] == pytest.approx(0.42)
    assert same.rows[0][2] == same.rows[2][0] == pytest.approx(0.65)
    assert kl.heat(0.42) == pytest.approx(1.0) and same.heat(1.0) == 0.0
    assert "8,192 held-out tokens" in known.measured


def test_an_older_build_has_neighbours_only(make_run: Maker) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        for event in ledger:
            event.pop("kl_from_earlier", None)

    run = make_run(edit=edit)
    known = alike(read_run(run))
    assert known and not known.whole and known.matrices[0].rows[0][2] is None
    assert "compares every two members" in write_report([run], run / "report.html").read_text("utf-8")


def test_kept_consistency_comes_first_in_the_runs_order(make_run: Maker) -> None:
    run = make_run()
    keep(run, "consistency.json", kept_consistency(run))
    known = alike(read_run(run))
    assert known and [matrix.key for matrix in known.matrices] == ["kl", "acceptance"]
    assert known.matrices[0].rows == ((0.0, 0.4, 0.3), (0.6, 0.0, 0.5), (0.1, 0.2, 0.0))
    page = write_report([run], run / "report.html").read_text("utf-8")
    assert '<data value="0.6" title="0.6">0.600</data>' in page and "Accepted drafts" in page


def test_consistency_of_other_weights_is_left_out_and_said(make_run: Maker) -> None:
    run = make_run()
    document = kept_consistency(run)
    document["members"][0]["sha256"] = "0" * 64
    keep(run, "consistency.json", document)
    known = alike(read_run(run))
    assert known and known.stale and known.matrices[0].rows[0][1] == pytest.approx(0.18)
    assert any("other weights" in text for _, text in warned(run))


@pytest.mark.parametrize(("name", "text"), [("tasks.json", "{"), ("consistency.json", '{"format": 2}')])
def test_a_garbled_measurement_is_named(make_run: Maker, name: str, text: str) -> None:
    run = make_run()
    (run / "evaluation").mkdir()
    (run / "evaluation" / name).write_text(text)
    with pytest.raises(KinfolkError, match=name):
        write_report([run], run / "report.html")
    assert not (run / "report.html").exists()


def result(member: str, value: float, **more: Any) -> dict[str, Any]:
    given = {"member": member, "task": "arc_easy", "metric": "acc", "value": value, "stderr": 0.01, "checkpoint": "f00"}
    known = {"interval": [value - 0.02, value + 0.02], "examples": 2376, "version": "1.0", "limit": None, "shots": 0}
    return {**given, **known, "higher_is_better": True, "part_of": None, "filter": "none", **more}


def test_tasks_are_shown_with_their_intervals(make_run: Maker) -> None:
    run = make_run()
    results = [
        result("small", 0.31),
        result("large", 0.42),
        result("large", 0.5, task="<b>", limit=20, interval=None),
        result("large", 0.77, task="part", part_of="group", filter="strict"),
        result("small", 35.5, task="lambada", metric="perplexity", higher_is_better=False),
        result("large", 0.0, task="nothing") | {"value": None},
    ]
    keep(run, "tasks.json", {"format": 1, "results": results})
    page = write_report([run], run / "report.html").read_text("utf-8")
    assert 'data-task="arc_easy/acc"' in page and 'title="0.42">0.4200</data> <span class="soft">0.400 to 0.440' in page
    assert "&lt;b&gt;" in page and "limited" in page and "2,376" in page and 'title="35.5"' in page
    assert "have not been tested" not in page
    parts = page[page.index("Parts of groups") :]
    assert 'data-task="part/acc,strict"' in parts and 'data-task="arc_easy/acc"' not in parts
    small, large = task_plot([read_run(run)]).views["result"]["data"]
    assert (small["y"], small["x"]) == (["arc_easy"], [0.31]), "perplexities have another scale"
    assert large["y"] == ["arc_easy", "&lt;b&gt;"]
    assert large["error_x"]["arrayminus"] == pytest.approx([0.02, 0.0])


def test_leaps_are_found_and_noise_is_not() -> None:
    draw = random.Random(0)
    noisy = [(step, 6 * step**-0.2 + draw.gauss(0, 0.05)) for step in range(1, 4000)]
    assert spikes(tuple(noisy)) == []
    for start in (900, 3000):
        for step in range(start, start + 3):
            noisy[step - 1] = (step, noisy[step - 1][1] + 1.5)
    assert spikes(tuple(noisy)) == [900, 3000]
    noisy[1999] = (2000, 20.0)
    assert spikes(tuple(noisy)) == [900, 3000], "a single step is a batch of odd text"
    after = [(step, loss + (2.0 if step >= 2500 else 0.0)) for step, loss in noisy]
    assert spikes(tuple(after)) == [900, 2500, 3000], "a new level is one leap"
    assert spikes(tuple((step, 2.0) for step in range(3 * WINDOW))) == []


def test_what_went_wrong_is_said(make_run: Maker) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        ledger.append({"event": "stage_diverged", "time": 0.0, "stage": "large", "step": 17, "fault": "loss nan,"})

    run = make_run(edit=edit)
    path = run / "stages/medium/metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] in (300, 301, 302) and "loss" in record:
            record["loss"] = 9.0
        if record["step"] == 5 and "loss" in record:
            record["gradient_norm"] = float("nan")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = warned(run)
    assert ("fault", "Stage large diverged at step 17: loss nan.") in said
    assert ("fault", "Not a finite number in the metrics of stage medium: 1 figure.") in said
    assert any("stage medium leapt once" in text and "step 300" in text for _, text in said)
    write_report([run], run / "report.html")
