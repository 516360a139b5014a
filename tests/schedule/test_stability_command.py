"""`kinfolk schedule stability` as a user calls it."""

import json
from pathlib import Path

import pytest
from synthetic_run import Maker
from test_divergence_prediction import sweep
from test_schedule_command import HEADER, document, refused, rows_of_truth, schedule, table

from kinfolk.cli.schedule_tables import print_fit
from kinfolk.schedule.fitted import fit_document, fit_runs
from kinfolk.schedule.law import save_law
from kinfolk.schedule.runs import read_runs, read_sweep
from kinfolk.schedule.shapes import warmup_of

SWEEP = ("size", "tokens_per_step", *HEADER, "stopped_at", "seed")


def sweep_rows() -> list[list[object]]:
    return [
        [
            *(one.size, 4096, one.steps, warmup_of(one.schedule), one.peak, "linear", 0.5, 0),
            *("" if one.diverged else 3.0 + 0.001 * index, 20 if one.diverged else "", 0),
        ]
        for index, one in enumerate(sweep())
    ]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return table(tmp_path / "sweep.csv", sweep_rows(), SWEEP)


def test_a_sweep_over_sizes(runs: Path) -> None:
    found = document("stability", runs)
    assert found["runs"] == 81 and found["diverged"] == sum(one.diverged for one in sweep())
    assert [size["size"] for size in found["sizes"]] == [1e5, 4e5, 1.6e6]
    for size in found["sizes"]:
        of_size = [one for one in sweep() if one.size == size["size"]]
        assert size["largest_stable"] == max(one.peak for one in of_size if not one.diverged)
        assert size["cap"] == 1.5 * size["largest_stable"] and size["stopped"] == 0.2
        assert size["stable"] + size["diverged"] == len(of_size)
    boundaries = [size["boundary"] for size in found["sizes"]]
    assert boundaries[0] / boundaries[1] == pytest.approx(4 ** (1 / 3))
    by_peak, by_size = found["scores"]
    assert (by_peak["left_out"], by_peak["groups"], by_peak["judged"]) == ("peak", 9, 81)
    assert (by_size["left_out"], by_size["groups"], by_size["skipped"]) == ("size", 3, 0)
    regression, _, threshold = by_peak["scores"]
    assert regression["f1"] > 0.95 > threshold["f1"] > 0.8
    right = regression["true_positives"]
    assert regression["precision"] == right / (right + regression["false_positives"])
    shown = schedule("stability", runs)
    for words in ("100 k", "1.6 M", "threshold on the peak", "each size of 3", "F1", "20%", "log odds"):
        assert words in shown
    assert "3 sizes" in str(refused("fit", runs))


def test_one_size_by_where_and_too_few_outcomes(runs: Path) -> None:
    alone = document("stability", runs, "--where", "size=100000.0")
    assert [part["left_out"] for part in alone["scores"]] == ["peak"] and alone["runs"] == 27
    few = document("stability", runs, "--where", f"peak_lr={sweep()[0].peak!r}")
    assert few["regression"] is None and few["scores"] == [] and few["diverged"] == 0
    shown = schedule("stability", runs, "--where", f"peak_lr={sweep()[0].peak!r}")
    assert "no regression" in shown and "could not be tested" in shown


def test_several_batch_sizes_are_said(tmp_path: Path) -> None:
    rows = sweep_rows()
    rows[0][1] = 8192
    found = document("stability", table(tmp_path / "batches.csv", rows, SWEEP))
    assert any("2 numbers of tokens per step" in finding for finding in found["findings"])


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("size", "", "do not say their size"),
        ("stopped_at", 500, "not one of the 100 steps"),
        ("loss", -1, "not a loss"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, column: str, value: object, said: str) -> None:
    rows = sweep_rows()
    wrong = next(row for row in rows if (row[SWEEP.index("loss")] == "") == (column != "loss"))
    wrong[SWEEP.index(column)] = value
    error = refused("stability", table(tmp_path / "wrong.csv", rows, SWEEP))
    assert said in str(error) and error.fix


def test_runs_that_all_diverged_are_refused(tmp_path: Path) -> None:
    rows = [row for row in sweep_rows() if row[SWEEP.index("loss")] == ""]
    assert "every run diverged" in str(refused("stability", table(tmp_path / "lost.csv", rows, SWEEP)))


def test_fit_shows_the_scores_of_its_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in rows_of_truth() if row[0] == 16_000 and row[4] != 0.3 and row[3] == "linear"]
    rows += [[16_000, warmup, peak, "linear", 0.3, 0, ""] for warmup in (50, 100, 300) for peak in (8e-3, 1.6e-2)]
    fitted = fit_runs(read_runs([table(tmp_path / "runs.csv", rows)]), size=1e8)
    (part,) = fit_document(fitted)["divergence"]
    assert (part["left_out"], part["groups"], part["judged"]) == ("peak", 5, len(rows))
    assert [score["predictor"] for score in part["scores"]][-1] == "threshold on the peak"
    assert part["scores"][0]["f1"] > 0.9
    print_fit(fitted)
    assert "prediction of divergence on runs left out" in capsys.readouterr().out
    # A larger model is riskier at the same peak, and is refused above the same cap.
    save_law(tmp_path / "law.json", fitted.law)
    wanted = ("rank", "--law", tmp_path / "law.json", "--steps", 16_000, "--peaks", "2e-3,2.9e-3,3.1e-3")
    own, larger = (
        {each["peak_lr"]: each for each in document(*wanted, "--size", size)["candidates"]} for size in (1e8, 8e8)
    )
    for peak in (2e-3, 2.9e-3):
        assert own[peak]["divergence_probability"] < larger[peak]["divergence_probability"]
    assert own[3.1e-3]["risk"] == larger[3.1e-3]["risk"] == "refused"


def test_high_losses_are_judged_within_a_size(tmp_path: Path) -> None:
    """The best of one size is far below what the other can reach."""
    header = ("size", *HEADER)
    rows: list[list[object]] = [
        [size, steps, 10, peak, "linear", 0.5, 0, loss]
        for size, steps, peak, loss in (
            *((1e8, 1000, 1e-3, 2.0), (1e8, 1000, 2e-3, 3.1), (1e5, 1000, 1e-3, 3.6), (1e5, 1000, 2e-3, 3.7)),
            *((1e8, 50, 1e-3, 5.0), (1e8, 50, 2e-3, 8.0)),
        )
    ]
    found = read_sweep([table(tmp_path / "runs.csv", rows, header)])
    assert [one.diverged for one in found.runs] == [False, True, False, False, False, True]


@pytest.mark.parametrize("losses", [("nan",), ("6.9", "nan"), ("6.9", "7.0", "nan")])
def test_a_curve_that_was_cut_short_by_divergence(tmp_path: Path, losses: tuple[str, ...]) -> None:
    """Nothing of it may be left after the warm-up."""
    rows = [[*row, ""] for row in rows_of_truth()]
    rows.append([16_000, 300, 8e-3, "linear", 0.3, 0, "", "lost.csv"])
    lines = [f"{100 * step},{loss}" for step, loss in enumerate(losses)]
    (tmp_path / "lost.csv").write_text("step,loss\n" + "\n".join(lines) + "\n")
    path = table(tmp_path / "runs.csv", rows, (*HEADER, "curve"))
    assert document("stability", path)["diverged"] == 1
    assert read_sweep([path]).runs[-1].stopped_at == 100 * (len(losses) - 1)
    rows[-1][0] = 50
    rows[-1][1] = 10
    error = refused("stability", table(path, rows, (*HEADER, "curve"))) if len(losses) > 1 else None
    assert error is None or "the curve has step" in str(error)


def test_own_stages_that_diverged_say_when(make_run: Maker) -> None:
    def lost(events: list[dict[str, object]]) -> None:
        medium = next(
            event for event in events if event["event"] == "stage_finished" and event.get("stage") == "medium"
        )
        medium.update(event="stage_diverged", step=25, fault="loss nan")

    found = read_sweep([make_run("alone", "independent", edit=lost)])
    assert {one.name: one.stopped_at for one in found.runs} == {
        **{f"alone/{name}": None for name in ("small", "large")},
        "alone/medium": 25,
    }
    assert [one.diverged for one in found.runs] == [False, True, False]
    shown = json.loads(schedule("stability", make_run("again", "independent", edit=lost), "--json"))
    assert [size["diverged"] for size in shown["sizes"]] == [0, 1, 0]
    assert shown["sizes"][1]["largest_stable"] is None and shown["sizes"][1]["cap"] is None
    assert shown["sizes"][1]["stopped"] == pytest.approx(25 / round(12e6 / 16384))
