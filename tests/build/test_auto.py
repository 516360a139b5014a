"""A build that chooses its schedule, and the command that does so for a family file."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import (
    CONTEXT,
    LARGE,
    SEQUENCES_PER_STEP,
    SMALL,
    RecordingView,
    exit_code,
    family,
    in_ranks,
    members_of,
    start_child,
)
from typer.testing import CliRunner

from kinfolk.build.auto import CHOSEN, PROBE, build_family
from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.schedule_probe import conclude, run_probe
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily, load_family
from kinfolk.plan import schedule_probe as probes
from kinfolk.plan.schedule_probe import design_probe
from kinfolk.schedule import fitted
from kinfolk.schedule.law import ScheduleLaw, load_law
from kinfolk.schedule.runs import read_runs
from kinfolk.train.engine import start_engine

STEPS = 24


@pytest.fixture(autouse=True, scope="module")
def _short() -> Any:
    """Probes of members that train for two dozen steps, and laws so sure of themselves that they choose something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "TOO_FEW_STEPS", 8)
        patch.setattr(probes, "FEWEST_STEPS", 16)
        patch.setattr(fitted, "_difference", lambda found: 1e-9)
        patch.setattr(ScheduleLaw, "tie", 1e-9)
        yield


def auto(folder: Path, *overrides: str, schedule: object = "auto", **recipe: Any) -> LoadedFamily:
    tokens = STEPS * SEQUENCES_PER_STEP * CONTEXT
    members = [{"name": "small", "shape": SMALL, "tokens": tokens}, {"name": "large", "shape": LARGE, "tokens": tokens}]
    recipe = {"schedule": schedule, "checkpoints": {"steps": 10}, **recipe}
    return family(folder, *overrides, members=members, recipe=recipe)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An auto build; its peak is so low that another one must be better."""
    folder = tmp_path_factory.mktemp("auto")
    build_family(auto(folder, peak_learning_rate=1e-4), folder / "run", RecordingView())
    return folder / "run"


def event(folder: Path) -> dict[str, Any]:
    (found,) = Ledger(folder / "ledger.jsonl").events(CHOSEN)
    return found


def test_a_build_chooses_records_and_uses_a_schedule(built: Path) -> None:
    chosen, ranking = event(built), json.loads((built / PROBE / "ranking.json").read_text())
    recipe = yaml.safe_load((built / "family.yaml").read_text())["recipe"]
    assert not chosen["keep_default"]
    assert recipe["peak_learning_rate"] == chosen["peak_learning_rate"] == ranking["recipe"]["peak_learning_rate"]
    assert {**recipe["schedule"], "rewarmup_share": None} == chosen["schedule"] == ranking["recipe"]["schedule"]
    assert chosen["default"]["peak_learning_rate"] == 1e-4 and chosen["verdict"] == ranking["verdict"]
    plan = json.loads((built / "plan.json").read_text())
    small = plan["stages"][0]
    assert small["rate"]["peak"] == chosen["peak_learning_rate"]
    assert small["rate"]["decay_shape"] == chosen["schedule"]["decay_shape"]
    assert members_of(built).keys() and not (built / PROBE / "members").exists()
    # The probe reads the build's data, and leaves a law behind but no checkpoints.
    assert (built / PROBE / "data").resolve() == (built / "data").resolve()
    assert load_law(built / PROBE / "law.json").fitted.runs == 13
    assert not list((built / PROBE).glob("stages/*/checkpoints"))
    names = [each["event"] for each in Ledger(built / "ledger.jsonl").events()]
    assert names.index(CHOSEN) < names.index("build_started")


def test_the_runs_of_a_probe_are_what_was_planned(built: Path) -> None:
    runs = read_runs([built / PROBE]).runs
    assert {run.peak for run in runs} == {5e-5, 1e-4, 2e-4}
    assert {run.steps for run in runs} == {8, 16} and len({run.family for run in runs}) >= 2
    law = load_law(built / PROBE / "law.json")
    assert law.noise_basis == "repeats" and law.noise > 0  # the repeat has other weights
    assert law.fitted.end_ratio[1] == 1.0  # points of the trunk do not end at 0
    assert law.kind == "sixteen"


def test_a_finished_auto_build_is_left_as_it_is(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    view = RecordingView()
    build_family(auto(built.parent, peak_learning_rate=1e-4), built, view)
    assert "nothing to do" in view.said[-1] and view.steps == 0
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the probe, once between its runs and the choice, once in the build."""
    loaded, run = auto(tmp_path, peak_learning_rate=1e-4), tmp_path / "run"

    def killed(count: int) -> None:
        def stop(steps: int) -> None:
            if steps == count:
                os.kill(os.getpid(), signal.SIGKILL)

        child = start_child(lambda: build_family(loaded, run, RecordingView(stop)))
        assert exit_code(child) == -signal.SIGKILL

    killed(30)
    killed(60)
    with monkeypatch.context() as patch:
        patch.setattr("kinfolk.build.schedule_probe.save_law", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        killed(0)
    assert not (run / "family.yaml").exists() and not (run / PROBE / "law.json").exists()
    killed(20)
    assert (run / "family.yaml").exists() and (run / PROBE / "law.json").exists()
    view = RecordingView()
    build_family(loaded, run, view)
    assert members_of(run) == members_of(built)
    ranking = (run / PROBE / "ranking.json").read_text()
    assert ranking == (built / PROBE / "ranking.json").read_text().replace(str(built), str(run))


def test_one_of_several_jobs_chooses(built: Path, tmp_path: Path) -> None:
    loaded, run, log = auto(tmp_path, peak_learning_rate=1e-4), tmp_path / "run", tmp_path / "log"
    jobs = [
        start_child(lambda member=member: build_family(loaded, run, RecordingView(), only=[member]), log)
        for member in ("small", "large")
    ]
    assert [exit_code(job) for job in jobs] == [0, 0], log.read_text()
    assert event(run)["verdict"] == event(built)["verdict"] and members_of(run) == members_of(built)


def test_a_choice_holds_for_its_recipe_only(built: Path, tmp_path: Path) -> None:
    with pytest.raises(KinfolkError, match=r"peak_learning_rate was 0\.0001 and is now 0\.01"):
        build_family(auto(built.parent, peak_learning_rate=0.01), built, RecordingView())
    with pytest.raises(KinfolkError, match=r"recipe\.seed was 0 and is now 5"):
        build_family(auto(built.parent, "recipe.seed=5", peak_learning_rate=1e-4), built, RecordingView())
    plain = auto(tmp_path, schedule={"decay_share": 0.5})
    build(plain, tmp_path / "run", RecordingView())
    with pytest.raises(KinfolkError, match="was begun with a schedule"):
        build_family(auto(tmp_path), tmp_path / "run", RecordingView())
    assert not (tmp_path / "run" / PROBE).exists()
    with pytest.raises(KinfolkError, match="still to be chosen"):
        build(auto(tmp_path), tmp_path / "other", RecordingView())


def test_what_is_wrong_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    for changes in ({"data": {"train": [{"path": "nowhere"}]}}, {"members": [{"name": "a", "parameters": 9}]}):
        with pytest.raises(KinfolkError):
            build_family(
                family(tmp_path, **{"recipe": {"schedule": "auto"}, **changes}), tmp_path / "run", RecordingView()
            )
        assert not (tmp_path / "run").exists()


def test_a_peak_that_diverges_is_a_finding(tmp_path: Path) -> None:
    """The other runs go on, and so they do after a stop; what would follow a diverged stage is not trained."""
    loaded = auto(tmp_path, schedule={"decay_share": 0.5})
    design = replace(design_probe(loaded.family), peaks=(0.005, 0.01, 1e30), horizons=(16,))
    for _ in range(2):
        view = RecordingView()
        with start_engine() as engine:
            run_probe(loaded, design, tmp_path / "run", view, engine)
    assert "nothing to do" in view.said[-1]
    events = Ledger(tmp_path / "run" / "ledger.jsonl").events()
    (diverged,) = [each["stage"] for each in events if each["event"] == "stage_diverged"]
    assert diverged.startswith("1e+30-held-")
    started = [each["stage"] for each in events if each["event"] == "stage_started"]
    assert [name for name in started if name.startswith("1e+30")] == [diverged]
    probed = conclude(loaded, tmp_path / "run")
    assert probed.fitted.law.stability.diverged == 1 and probed.fitted.law.fitted.peak_lr == (0.005, 0.01)
    assert max(each.schedule.peak for each in probed.ranking.candidates) <= 0.01


def test_another_probe_in_the_same_folder_is_refused(built: Path) -> None:
    loaded = auto(built.parent, peak_learning_rate=1e-4)
    with pytest.raises(KinfolkError, match="begun with other runs"), start_engine() as engine:
        run_probe(loaded, design_probe(loaded.family, peaks=[1e-3, 2e-3]), built / PROBE, RecordingView(), engine)


def test_processes_of_a_job_choose_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = auto(tmp_path)
    small = replace(design_probe(loaded.family), peaks=(0.01, 0.02), horizons=(8,), repeated_peak=None)
    monkeypatch.setattr("kinfolk.build.auto.design_probe", lambda family: small)
    log = tmp_path / "log"
    assert in_ranks(lambda: build_family(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    assert event(tmp_path / "run")["probe"] == PROBE
    assert set(members_of(tmp_path / "run"))


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["schedule", "probe", *map(str, arguments)])


def test_the_command_prices_trains_and_writes(tmp_path: Path) -> None:
    auto(tmp_path, schedule={"decay_share": 0.5}, peak_learning_rate=5e-3)
    file, run = tmp_path / "family.yaml", tmp_path / "probe"
    file.write_text("# mine\n" + file.read_text().replace("decay_share: 0.5", "decay_share: 0.5  # half"))
    before = file.read_text()
    priced = command(file, "--run", run, "--price", "--json")
    assert priced.exit_code == 0 and not run.exists() and file.read_text() == before
    price = json.loads(priced.stdout)["probe"]["price"]
    assert price["runs"] == 13 and price["flops"]["matmul"] == price["share"] * price["build_flops"]["matmul"] > 0
    options = ("--run", run, "--peaks", "5e-3,1e-2")
    done = command(file, *options, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["probe"]["price"]["runs"] == 8 and document["probe"]["seconds"] > 0
    assert document["recipe"]["keep_default"] is False and document["written"] == str(file)
    recipe = load_family(str(file)).family.recipe
    assert recipe.peak_learning_rate == document["recipe"]["peak_learning_rate"]
    assert recipe.schedule.decay_share == document["recipe"]["schedule"]["decay_share"]
    assert file.read_text().startswith("# mine\n") and "  # half" in file.read_text()
    # It goes on where it was: nothing is trained again, and another file can have the choice.
    again = command(
        file,
        *options,
        "--output",
        tmp_path / "new" / "other.yaml",
        "--set",
        "recipe.peak_learning_rate=5e-3",
        "--set",
        "recipe.schedule={decay_share: 0.5}",
    )
    assert again.exit_code == 0, again.output
    elsewhere = load_family(str(tmp_path / "new" / "other.yaml")).family
    assert elsewhere.recipe == recipe and elsewhere.data.train[0].path == str(tmp_path / "corpus")  # type: ignore[union-attr]
    assert "written:" in again.stdout and "tied" in again.stdout


def test_the_command_keeps_a_recipe_that_cannot_be_beaten(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by a tie that no candidate can beat."""
    monkeypatch.setattr(ScheduleLaw, "tie", 100.0)
    auto(built.parent, schedule={"warmup_share": 0.05}, peak_learning_rate=1e-4)
    file = built.parent / "family.yaml"
    before, stamp = file.read_text(), file.stat().st_mtime_ns
    kept = command(file, "--run", built / PROBE)
    assert kept.exit_code == 0, kept.output
    assert "no significant difference: keep the default" in kept.stdout and "left as it is" in kept.stdout
    assert file.read_text() == before and file.stat().st_mtime_ns == stamp
    auto(built.parent, peak_learning_rate=1e-4)  # `auto` gives way to what was chosen, the default too
    assert command(file, "--run", built / PROBE).exit_code == 0
    found = load_family(str(file))
    assert not found.auto_schedule and found.family.recipe.schedule.decay_share == 0.95


def test_what_the_command_refuses(tmp_path: Path) -> None:
    auto(tmp_path, schedule={"decay_share": 0.5})
    file = tmp_path / "family.yaml"
    (tmp_path / "there.yaml").write_text("mine")
    for arguments, message in (
        (("tiny",), "a preset is not yours"),
        ((file, "--output", tmp_path / "there.yaml"), "is there already"),
        ((file, "--share", 0), "no share"),
        ((file, "--peaks", "1e-3"), "two different ones"),
        ((file, "--peaks", "high"), "not a list of numbers"),
        ((tmp_path / "no.yaml",), "no family file"),
    ):
        error = command(*arguments, "--run", tmp_path / "run").exception
        assert isinstance(error, KinfolkError) and message in str(error), (arguments, error)
    assert not (tmp_path / "run").exists() and (tmp_path / "there.yaml").read_text() == "mine"


def test_a_plan_says_what_an_auto_family_costs_more(tmp_path: Path) -> None:
    auto(tmp_path)
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "family.yaml"), "--json"])
    document = json.loads(shown.stdout)
    probe = document["schedule_probe"]
    assert probe["price"]["build_flops"] == pytest.approx(document["total"]) and probe["seconds"] > 0
    told = CliRunner().invoke(app, ["plan", str(tmp_path / "family.yaml")]).stdout
    assert "schedule: auto; planned with the usual one" in told and "13 runs" in told
    auto(tmp_path, schedule={"decay_share": 0.5})
    plain = CliRunner().invoke(app, ["plan", str(tmp_path / "family.yaml"), "--json"])
    assert json.loads(plain.stdout)["schedule_probe"] is None
