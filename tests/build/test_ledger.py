from pathlib import Path

import pytest
from micro import in_child

from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import only_build_in
from kinfolk.errors import KinfolkError


def test_events_come_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.events() == []
    ledger.append("one", n=1)
    ledger.append("two", n=[1.5, None, "ü"])
    ledger.append("one", n=3)
    assert [event["n"] for event in ledger.events()] == [1, [1.5, None, "ü"], 3]
    assert [event["n"] for event in ledger.events("one")] == [1, 3]
    with pytest.raises(ValueError):
        ledger.append("bad", loss=float("nan"))
    assert len(ledger.events()) == 3


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_half_a_last_line_is_passed_over_and_ended(tmp_path: Path, kept: int) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("one")
    first = (tmp_path / "ledger.jsonl").read_bytes()
    ledger.append("cut")
    second = (tmp_path / "ledger.jsonl").read_bytes()[len(first) :]
    (tmp_path / "ledger.jsonl").write_bytes(first + second[:kept] if kept > 0 else first + b"\xff\xfe")
    assert [event["event"] for event in ledger.events()] == ["one"]
    ledger.append("after")
    assert [event["event"] for event in ledger.events()] == ["one", "after"]


def test_one_build_at_a_time(tmp_path: Path) -> None:
    def claim() -> None:
        with only_build_in(tmp_path):
            pass

    with only_build_in(tmp_path):
        assert in_child(claim, tmp_path / "log") == 2
    assert "another build is at work" in (tmp_path / "log").read_text()
    assert in_child(claim) == 0
    with pytest.raises(KinfolkError), only_build_in(tmp_path), only_build_in(tmp_path):
        pass
