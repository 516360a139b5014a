"""`kinfolk schedule` as a user calls it, on runs that lie on a known law."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_curves import path_of
from public_schedules import FITTED, TESTED
from synthetic_run import Maker
from test_schedule_laws import truth
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.schedule import convergence, multipower
from kinfolk.schedule.law import load_law
from kinfolk.schedule.runs import read_runs
from kinfolk.schedule.shapes import NamedSchedule, Shape, rates

TRUE, _ = truth()
HEADER = ("steps", "warmup_steps", "peak_lr", "shape", "decay_fraction", "end_ratio", "loss")
PEAKS, FRACTIONS, STEPS = (5e-4, 1e-3, 2e-3), (0.1, 0.3, 0.6), (8_000, 16_000)


def schedule(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["schedule", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*arguments: object) -> dict[str, Any]:
    found = json.loads(schedule(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


def refused(*arguments: object) -> KinfolkError:
    result = CliRunner().invoke(app, ["schedule", *map(str, arguments)])
    assert isinstance(result.exception, KinfolkError), result.exception
    assert result.stdout == ""
    return result.exception


def loss_of(peak: float, fraction: float, steps: int, shape: Shape = "linear", end: float = 0.0) -> float:
    run = NamedSchedule(steps=steps, peak=peak, shape=shape, warmup_steps=300, decay_fraction=fraction, end_ratio=end)
    return float(convergence.predict(TRUE, run, np.array([steps]))[0])


def rows_of_truth() -> list[list[object]]:
    rows: list[list[object]] = [
        [steps, 300, peak, "linear", fraction, 0, round(loss_of(peak, fraction, steps), 6)]
        for peak in PEAKS
        for fraction in FRACTIONS
        for steps in STEPS
    ]
    rows.append([16_000, 300, 1e-3, "cosine", 1, 0.1, round(loss_of(1e-3, 1.0, 16_000, "cosine", 0.1), 6)])
    return rows


def table(path: Path, rows: list[list[object]], header: tuple[str, ...] = HEADER) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([list(header), *rows])
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return table(tmp_path / "runs.csv", rows_of_truth())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("law")
    schedule("fit", table(folder / "runs.csv", rows_of_truth()), "--output", folder / "law.json")
    return (folder / "law.json").read_text()


@pytest.fixture
def law(fitted: str, tmp_path: Path) -> Path:
    (tmp_path / "law.json").write_text(fitted)
    return tmp_path / "law.json"


def curve(path: Path, rows: list[tuple[object, ...]], header: str = "step,lr,loss") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def curve_rows(steps: int = 6_000, every: int = 100) -> list[tuple[object, ...]]:
    """A noisy cosine on the published 25M law."""
    run = NamedSchedule(steps=steps, peak=3e-4, shape="cosine", warmup_steps=200, decay_fraction=1.0, end_ratio=0.1)
    at = np.arange(every, steps + 1, every)
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(at))
    losses = multipower.predict(multipower.PUBLISHED["multipower-25m"], run, at) + noise
    eta = np.append(rates(run), rates(run)[-1])
    return [(int(step), float(eta[step]), round(float(loss), 5)) for step, loss in zip(at, losses, strict=True)]


# fit


def test_fit_chooses_and_shows_every_law(runs: Path, tmp_path: Path) -> None:
    found = document("fit", runs, "--output", tmp_path / "law.json")
    assert found["kind"] == "sixteen" and found["rows"] == 19
    assert found["mean_absolute_error"] < 2e-3
    by_kind = {each["kind"]: each for each in found["laws"]}
    assert by_kind["sixteen"]["eligible"] and by_kind["sixteen"]["held_out_error"] > 0
    assert not by_kind["multipower"]["eligible"] and "peak" in by_kind["multipower"]["reason"]
    assert 0 < found["calibration"]["half_width"] < 0.05
    assert found["fitted"]["peak_lr"] == [5e-4, 2e-3]
    assert load_law(tmp_path / "law.json").model_dump(mode="json") == found["law"]
    assert document("fit", runs)["numbers"] == found["numbers"]
    shown = schedule("fit", runs)
    assert "laws tried" in shown and "noise" in shown and "90 % interval" in shown


def test_a_kind_can_be_asked_for(runs: Path) -> None:
    found = document("fit", runs, "--kind", "annealing")
    assert found["kind"] == "annealing" and found["why"] == "asked for"
    assert "multipower" in str(refused("fit", runs, "--kind", "best"))


def test_cosines_alone_are_warned_of(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        [steps, 300, peak, "cosine", 1, end, loss_of(peak, 1.0, steps, "cosine", end)]
        for steps in STEPS
        for peak in PEAKS
        for end in (0.0, 0.1)
    ]
    found = document("fit", table(tmp_path / "cosines.csv", rows))
    assert any("only cosine" in finding for finding in found["findings"])


def test_one_size_at_a_time(tmp_path: Path) -> None:
    rows = [[*row, 1e8 if index % 2 else 2e8] for index, row in enumerate(rows_of_truth())]
    path = table(tmp_path / "sizes.csv", rows, (*HEADER, "params"))
    assert "2 sizes" in str(refused("fit", path))
    assert document("fit", path, "--where", "params=100000000.0")["fitted"]["size"] == 1e8


def test_diverged_runs_are_counted_for_the_risk(runs: Path, tmp_path: Path) -> None:
    rows = rows_of_truth() + [[16_000, warmup, 4e-3, "linear", 0.3, 0, "nan"] for warmup in (100, 300)]
    rows.append([16_000, 50, 4e-3, "linear", 0.3, 0, 9.5])
    path = table(tmp_path / "diverged.csv", rows)
    found = document("fit", path, "--output", tmp_path / "law.json")
    assert found["rows"] == 19 and found["stability"]["diverged"] == 3
    assert found["stability"]["largest_stable"] == 2e-3 and found["stability"]["smallest_diverged"] == 4e-3
    ranked = document("rank", "--law", tmp_path / "law.json", "--steps", 16_000, "--peaks", "1e-3,2.9e-3,4e-3")
    risks = {each["peak_lr"]: each["risk"] for each in ranked["candidates"]}
    assert risks[1e-3] == "low" and risks[4e-3] == "refused"
    chances = {each["peak_lr"]: each["divergence_probability"] for each in ranked["candidates"]}
    assert chances[1e-3] < chances[2.9e-3] < chances[4e-3]
    assert [each["risk"] for each in ranked["candidates"]][-1] == "refused"
    assert "largest seen stable" in str(
        refused("rank", "--law", tmp_path / "law.json", "--steps", 16_000, "--peaks", "4e-3")
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("steps", "8.5", "other units"),
        ("steps", "5e9", "other units"),
        ("peak_lr", "5", "other units"),
        ("peak_lr", "0", "other units"),
        ("warmup_steps", "0.05", "not a share"),
        ("decay_fraction", "20", "percent"),
        ("shape", "triangle", "no shape"),
        ("end_ratio", "-1", "negative"),
        ("end_ratio", "2", "end_ratio"),
        ("loss", "-3", "not a loss"),
        ("loss", "three", "not a number"),
        ("warmup_steps", "9000", "do not fit"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_line(
    tmp_path: Path, column: str, value: str, said: str
) -> None:
    rows = rows_of_truth()
    rows[4][HEADER.index(column)] = value
    if column in ("warmup_steps", "steps"):
        rows[4][0] = value if column == "steps" else 8_000
    error = refused("fit", table(tmp_path / "wrong.csv", rows))
    assert said in str(error) and "line 6" in str(error) and error.fix


def test_perplexities_and_too_few_runs_are_refused(tmp_path: Path) -> None:
    rows = [[*row[:-1], 20.0 + index] for index, row in enumerate(rows_of_truth())]
    assert "perplexity" in str(refused("fit", table(tmp_path / "ppl.csv", rows)))
    assert "too short" in str(refused("fit", table(tmp_path / "few.csv", rows_of_truth()[:3])))
    no_loss = [row[:-1] for row in rows_of_truth()]
    assert "loss" in str(refused("fit", table(tmp_path / "no.csv", no_loss, HEADER[:-1])))
    assert refused("fit", tmp_path / "nowhere.csv").fix


# curves


def test_a_curve_is_fitted_and_continued(tmp_path: Path) -> None:
    path = curve(tmp_path / "one.csv", curve_rows())
    found = document("fit", path, "--output", tmp_path / "law.json")
    assert found["kind"] == "annealing" and found["calibration"]["basis"] == "assumed"
    assert any("one peak" in finding for finding in found["findings"])
    predicted = document("predict", tmp_path / "law.json", path)
    assert predicted["known"] == 60 and predicted["mean_absolute_error"] < 0.02
    assert predicted["rows"][-1]["low"] < predicted["rows"][-1]["predicted"] < predicted["rows"][-1]["high"]


def flags_of(path: Path) -> str:
    return " | ".join(read_runs([path]).findings)


def test_faulty_curves_are_flagged_by_name(tmp_path: Path) -> None:
    rows = curve_rows()
    raw = flags_of(curve(tmp_path / "raw.csv", rows))
    assert not any(word in raw for word in ("unsorted", "gap", "smoothed", "doubled", "diverged"))
    assert "unsorted" in flags_of(curve(tmp_path / "unsorted.csv", rows[30:] + rows[:30]))
    assert "doubled" in flags_of(curve(tmp_path / "doubled.csv", [*rows, rows[-1]]))
    assert "gap" in flags_of(curve(tmp_path / "gap.csv", rows[:20] + rows[40:]))
    many = curve_rows(every=40)
    averaged, smooth = float(many[0][2]), []  # type: ignore[arg-type]
    for step, rate, loss in many:
        averaged = 0.9 * averaged + 0.1 * float(loss)  # type: ignore[arg-type]
        smooth.append((step, rate, averaged))
    assert "smoothed" not in flags_of(curve(tmp_path / "dense.csv", many))
    assert "smoothed" in flags_of(curve(tmp_path / "smooth.csv", smooth))


def test_curves_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    rows = curve_rows()
    cases: dict[str, tuple[list[tuple[object, ...]], str]] = {
        "short": (rows[:7], "too short"),
        "late": (rows[20:], "missing"),
        "kilosteps": ([(int(step) / 1000, rate, loss) for step, rate, loss in rows], "other units"),  # type: ignore[call-overload]
        "multiples": ([(step, 1.0, loss) for step, _, loss in rows], "other units"),
        "perplexity": ([(step, rate, np.exp(float(loss))) for step, rate, loss in rows], "other units"),  # type: ignore[arg-type]
        "nan": ([*rows[:-1], (rows[-1][0], rows[-1][1], "nan")], "diverged"),
        "up": ([*rows[:-1], (rows[-1][0], rows[-1][1], 9.0)], "diverged"),
    }
    for name, (wrong, said) in cases.items():
        error = refused("fit", curve(tmp_path / f"{name}.csv", wrong))
        assert said in str(error), name
    assert "lr" in str(refused("fit", curve(tmp_path / "c.csv", [(s, v) for s, _, v in rows], "step,loss")))


def test_a_table_names_the_curves_of_its_runs(tmp_path: Path) -> None:
    rows: list[list[object]] = []
    for index, row in enumerate(rows_of_truth()):
        run = NamedSchedule(
            steps=int(str(row[0])),
            peak=float(str(row[2])),
            shape="cosine" if row[3] == "cosine" else "linear",
            warmup_steps=300,
            decay_fraction=float(str(row[4])),
            end_ratio=float(str(row[5])),
        )
        at = np.arange(200, run.steps, 200)
        losses = convergence.predict(TRUE, run, at) - 0.03  # measured on other tokens
        curve(tmp_path / f"c{index}.csv", list(zip(at.tolist(), losses.tolist(), strict=True)), "step,loss")
        rows.append([*row, f"c{index}.csv"])
    found = document("fit", table(tmp_path / "runs.csv", rows, (*HEADER, "curve")))
    assert found["curve_offset"] == pytest.approx(0.03, abs=0.004)
    assert found["fitted"]["steps"][0] == 5_000


# predict


def test_predict_adds_columns(law: Path, tmp_path: Path) -> None:
    rows: list[list[object]] = [
        [12_000, 300, 1.5e-3, "linear", 0.4, 0, round(loss_of(1.5e-3, 0.4, 12_000), 5)],
        [50_000, 300, 1e-2, "1-sqrt", 0.4, 0, ""],
    ]
    path, out = table(tmp_path / "new.csv", rows), tmp_path / "out.csv"
    found = document("predict", law, path, "--output", out)
    inside, beyond = found["rows"]
    assert inside["predicted"] == pytest.approx(float(rows[0][-1]), abs=0.004)  # type: ignore[arg-type]
    assert inside["low"] < inside["predicted"] < inside["high"] and not inside["warnings"]
    assert {"peak", "horizon", "shape"} <= set(beyond["outside"])
    widths = [np.log(row["high"] / row["low"]) for row in (inside, beyond)]
    assert widths[1] / widths[0] == pytest.approx(1 + np.log(50_000 / 16_000))
    with open(out) as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == [*HEADER, "predicted", "low", "high"]
    assert float(written[0]["predicted"]) == pytest.approx(inside["predicted"], abs=1e-6)
    assert "horizon" in schedule("predict", law, path)


@pytest.mark.parametrize("text", ["{", "[]", '{"law": {}}', '{"kind": "sixteen"}'])
def test_files_that_hold_no_law_are_refused(runs: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "law.json").write_text(text)
    assert refused("predict", tmp_path / "law.json", runs).fix
    assert refused("predict", tmp_path / "no.json", runs).fix


def test_a_law_with_a_number_missing_is_refused(law: Path, runs: Path) -> None:
    found = json.loads(law.read_text())
    del found["numbers"]["constant"]
    law.write_text(json.dumps(found))
    assert "constant" in str(refused("predict", law, runs))


# rank


def test_rank_finds_the_best_and_says_what_is_tied(law: Path) -> None:
    found = document("rank", "--law", law, "--steps", 16_000)
    order = [each["predicted"] for each in found["candidates"]]
    assert order == sorted(order) and len(order) > 300
    best = found["best"]
    true = {
        (each["peak_lr"], each["shape"], each["decay_fraction"], each["end_ratio"]): loss_of(
            each["peak_lr"], each["decay_fraction"], 16_000, each["shape"], each["end_ratio"]
        )
        for each in found["candidates"]
    }
    picked = true[best["peak_lr"], best["shape"], best["decay_fraction"], best["end_ratio"]]
    assert picked - min(true.values()) < 0.004
    assert found["tied"] == sum(each["tied"] for each in found["candidates"])
    assert all(each["low"] < each["predicted"] < each["high"] for each in found["candidates"])
    assert all(each["tied"] == (each["predicted"] - order[0] <= found["tie"]) for each in found["candidates"])
    shown = schedule("rank", "--law", law, "--steps", 16_000)
    assert "tied" in shown and "default" in shown


def test_a_good_default_is_kept_and_a_bad_one_is_not(law: Path) -> None:
    best = document("rank", "--law", law, "--steps", 16_000)["best"]
    fields = ("peak_lr", "shape", "decay_fraction", "end_ratio", "warmup_steps")
    good = ",".join(f"{field}={best[field]}" for field in fields)
    kept = document("rank", "--law", law, "--steps", 16_000, "--default", good)
    assert kept["keep_default"] and kept["verdict"].startswith("no significant difference: keep the default")
    bad = "peak_lr=2e-3,shape=linear,decay_fraction=0.02,warmup_steps=300"
    changed = document("rank", "--law", law, "--steps", 16_000, "--default", bad)
    assert not changed["keep_default"] and changed["verdict"].startswith("change")
    assert changed["choice"]["predicted"] == changed["best"]["predicted"]


def test_rank_warns_outside_its_range(law: Path) -> None:
    found = document("rank", "--law", law, "--tokens", 1e9, "--tokens-per-step", 1e4, "--size", 1e9)
    assert found["steps"] == 100_000
    warnings = " ".join(found["warnings"])
    assert "horizon" in warnings and "size" in warnings
    assert "longest horizon" in " ".join(document("rank", "--law", law, "--tokens", 1e9)["warnings"])
    peaks = document("rank", "--law", law, "--steps", 16_000, "--peaks", "2.5e-3")["candidates"]
    assert all(any("peak" in warning for warning in each["warnings"]) for each in peaks)
    assert {each["risk"] for each in peaks} == {"unknown"}


def test_another_size_is_warned_of_with_what_rules_say(runs: Path, tmp_path: Path) -> None:
    schedule("fit", runs, "--size", 1e8, "--tokens-per-step", 1e5, "--output", tmp_path / "law.json")
    found = document("rank", "--law", tmp_path / "law.json", "--tokens", 1.6e9, "--size", 8e8)
    assert found["steps"] == 16_000
    assert "olmo ladder 0.5" in " ".join(found["warnings"])
    same = document("rank", "--law", tmp_path / "law.json", "--tokens", 1.6e9, "--size", 1e8)
    assert not any("size" in warning for warning in same["warnings"])


def test_a_finished_run_can_be_extended(law: Path) -> None:
    past = "steps=8000,peak_lr=1e-3,shape=linear,decay_fraction=0.2,warmup_steps=300"
    found = document(
        *("rank", "--law", law, "--steps", 8_000, "--after", past, "--peaks", "5e-4,1e-3", "--warmup-steps", "200"),
        *("--default", "peak_lr=5e-4,shape=linear,decay_fraction=0.5,warmup_steps=200"),
    )
    assert found["after"]["steps"] == 8_000 and found["steps"] == 8_000
    assert any("extension" in warning for warning in found["warnings"])
    # The whole of both is longer than either: the loss is below that of the finished run.
    assert found["best"]["predicted"] < loss_of(1e-3, 0.2, 8_000)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--tokens", "0"),
        ("--tokens", "nan"),
        ("--steps", "1"),
        ("--steps", "100", "--peaks", "fast"),
        ("--steps", "100", "--peaks", ","),
        ("--steps", "100", "--shapes", "triangle"),
        ("--steps", "100", "--warmup-steps", "200"),
        ("--steps", "100", "--default", "peak=1e-3"),
        ("--steps", "100", "--default", "shape=linear"),
        ("--steps", "100", "--after", "peak_lr=1e-3"),
    ],
)
def test_rankings_that_make_no_sense_are_refused(law: Path, arguments: tuple[str, ...]) -> None:
    assert refused("rank", "--law", law, *arguments).fix


# kinfolk's own runs, and the public curves through the command


def test_runs_of_kinfolk(make_run: Maker, tmp_path: Path) -> None:
    alone = make_run("alone", "independent")
    assert "3 sizes" in str(refused("fit", alone))
    found = document("fit", alone, "--where", "member=small", "--output", tmp_path / "law.json")
    assert found["rows"] == 1 and found["kind"] == "annealing"
    assert found["fitted"]["size"] == 120_000 and found["fitted"]["tokens_per_step"] == 16_384
    ranked = document("rank", "--law", tmp_path / "law.json", "--tokens", 3e6)
    assert ranked["steps"] == round(3e6 / 16_384)
    chain = document("fit", make_run("chain", "progressive"))
    assert chain["rows"] == 1 and any("grown" in finding for finding in chain["findings"])


def test_damaged_and_unfinished_runs_are_refused(make_run: Maker) -> None:
    assert "not finished" in str(refused("fit", make_run("half", "independent", (0, 20))))
    run = make_run("broken")
    (run / "plan.json").write_text('{"stages": [{}]}')
    assert refused("fit", run).fix


def test_public_curves_through_the_command(tmp_path: Path) -> None:
    folder = path_of("mpl/csv_25")
    found = document("fit", *(folder / f"{name}.csv" for name in FITTED), "--output", tmp_path / "law.json")
    assert found["kind"] == "ensemble"
    errors = [
        document("predict", tmp_path / "law.json", folder / f"{name}.csv")["mean_absolute_error"] for name in TESTED
    ]
    assert float(np.mean(errors)) <= 0.0045
