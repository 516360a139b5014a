"""The parts of the page that are worth testing alone."""

import json
import math
from pathlib import Path

import pytest
from synthetic_run import Maker, make_plan

from kinfolk.errors import KinfolkError
from kinfolk.report import curves, numbers
from kinfolk.report.figures import stage_colours
from kinfolk.report.metrics import Metrics, finite
from kinfolk.report.run import read_run
from kinfolk.report.tree import tree


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (numbers.count(999.6), "1 k"),
        (numbers.count(1_500_000_000), "1.5 B"),
        (numbers.count(-12), "-12"),
        (numbers.count(1e18), "1,000,000 T"),
        (numbers.flops(0), "0 FLOP"),
        (numbers.flops(float("inf")), "inf FLOP"),
        (numbers.seconds(59.97), "1 min"),
        (numbers.seconds(3599.7), "1 h"),
        (numbers.seconds(0.0123), "0.0123 s"),
        (numbers.percent(-0.00001), "0.0 %"),
        (numbers.percent(-0.031), "-3.1 %"),
        (numbers.small(float("nan")), "nan"),
        (numbers.small(-1.25e-15), "-1.25 x 10⁻¹⁵"),
    ],
)
def test_numbers(shown: numbers.Number, text: str) -> None:
    assert shown.text.replace(numbers.SPACE, " ").replace(numbers.MINUS, "-").replace(numbers.TIMES, "x") == text


def test_smoothing_keeps_a_constant_and_the_ends() -> None:
    flat = tuple((step, 2.5) for step in range(1, 2000))
    assert all(loss == pytest.approx(2.5) for _, loss in curves.smooth(flat))
    thinned = curves.thin(curves.smooth(flat), 600)
    assert len(thinned) == 600 and thinned[0][0] == 1 and thinned[-1][0] == 1999
    assert curves.smooth(()) == () and curves.settled_range([()]) is None


def test_later_record_of_a_step_counts(make_run: Maker) -> None:
    run = make_run(stop_at=(0, 5))
    path = run / "stages/small/metrics.jsonl"
    path.write_text(path.read_text("utf-8") + json.dumps({"step": 3, "loss": 1.0}) + "\n", "utf-8")
    assert dict(read_run(run).stages[0].metrics.train)[3] == 1.0


def test_tree_of_a_trunk_with_branches(make_run: Maker) -> None:
    plan = make_plan("progressive")
    trunk, grown, _ = plan["stages"]
    branch = {**trunk, "name": "decay", "parent": "small", "source": {"kind": "continue", "stage": "small"}}
    later = {**grown, "name": "decay 2", "parent": "medium", "source": {"kind": "continue", "stage": "medium"}}
    plan["stages"] = [trunk, branch, grown, later]
    run = read_run(make_run(plan=plan, stop_at=(0, 0)))
    nodes = tree(run, stage_colours([run])).nodes
    assert [node.stage.plan.name for node in nodes] == ["small", "decay", "medium", "decay 2"]
    lanes = {node.stage.plan.name: node.x for node in nodes}
    assert lanes["small"] == lanes["medium"] < lanes["decay"]
    assert [bool(node.path) for node in nodes] == [False, True, True, True]
    assert nodes[1].edge == "continues small" and nodes[2].edge.startswith("grown from small")


def test_build_started_again_after_its_end_is_not_complete(make_run: Maker, tmp_path: Path) -> None:
    run = make_run()
    assert read_run(run).complete
    with open(run / "ledger.jsonl", "a", encoding="utf-8") as ledger:
        ledger.write(
            json.dumps({"event": "build_started", "time": 1.8e9, "command": ["kinfolk", "build", "a b"]}) + "\n"
        )
    again = read_run(run)
    assert not again.complete and again.builds[-1].command == "kinfolk build 'a b'"


@pytest.mark.parametrize("command", ["[-1]", "[[]]", "7", "null"])
def test_a_command_that_is_none_is_refused(make_run: Maker, command: str) -> None:
    run = make_run()
    with open(run / "ledger.jsonl", "a", encoding="utf-8") as ledger:
        ledger.write(f'{{"event": "build_started", "time": 1.8e9, "command": {command}}}\n')
    with pytest.raises(KinfolkError, match="command"):
        read_run(run)


def test_losses_that_are_infinite_are_counted_and_not_drawn(make_run: Maker) -> None:
    found = _metrics_with_loss(make_run(), "1e999")
    assert found.not_finite == 1 and math.isinf(found.train[0][1])
    assert finite(found.train) == found.train[1:]


@pytest.mark.parametrize("number", ["1" + 400 * "0", "-1" + 400 * "0", "1" + 5000 * "0"])
def test_losses_of_more_digits_than_a_float_holds_are_damage(make_run: Maker, number: str) -> None:
    found = _metrics_with_loss(make_run(), number)
    assert found.damaged == 1 and found.not_finite == 0


def _metrics_with_loss(run: Path, number: str) -> Metrics:
    with open(run / "stages" / "small" / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        metrics.write(f'{{"step": 1, "loss": {number}}}\n')
    return read_run(run).by_name["small"].metrics
