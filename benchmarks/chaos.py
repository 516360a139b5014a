"""Kills a build at random moments, again and again, and checks that it ends like one that nothing disturbed.

    python benchmarks/chaos.py --kills 120 [--background]

A small family is built by `kinfolk build` in child processes. Each gets SIGKILL: two of three times at a random moment
of a phase that was hit least so far, otherwise at a random moment of the whole build. The next child runs the same
command in what is left. After each kill and at the end of each build everything is checked that `Checks` lists. With
`--background` checkpoints are written while training goes on, and a kill may find several steps of them unfinished.
SIGKILL ends a process, not the machine: that a power cut finds everything on the disk is up to fsync, which is called
before every rename and is not tested here.
"""

import argparse
import contextlib
import importlib
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import yaml

from kinfolk.build.ledger import Ledger
from kinfolk.train import checkpoint
from kinfolk.train.monitor import read_metrics

PHASES = {
    "starting": [],
    "tokenizing": ["kinfolk.build.run:prepare_versions"],
    "planning": ["kinfolk.build.run:_document"],
    "opening": ["kinfolk.build.build:open_run"],
    "first state": ["kinfolk.build.build:begin_stage"],
    "growing": ["kinfolk.build.origin:begin_growth"],
    "training": ["kinfolk.build.build:train_stage"],
    "checkpointing": ["kinfolk.train.resumable:begin_save", "kinfolk.train.saving:Saving.finish"],
    "evaluating": ["kinfolk.build.build:finish_member"],
    "exporting": ["kinfolk.build.finish:export_saved"],
    "ledger": ["kinfolk.build.ledger:Ledger.append"],
    "reporting": ["kinfolk.report.page:write_report"],
}
"""Where each phase begins and ends: functions, under the names by which the build calls them. The innermost counts."""
NAMES = list(PHASES)
PASSING = {"time", "seconds", "checkpoint_seconds", "tokens_per_second", "not_forecast"}
"""Fields that tell of the clock. Forecasts belong to them: whether there is time for one depends on it."""
SAVED_EVERY = 5


def write_family(folder: Path, tokens: int = 24_000) -> Path:
    """A corpus from a seeded grammar, and the family file: three members, the first of them begins with patches."""
    draw = random.Random(11)
    nouns, verbs = ["raven", "mill", "lantern", "river", "cobbler", "façade", "学校"], ["sees", "mends", "follows"]
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for number in range(400):
        lines = [f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}." for _ in range(20)]
        (folder / "corpus" / f"{number:03}.txt").write_text(f"Story {number}.\n" + "\n".join(lines) + "\n", "utf-8")
    shapes = {"small": (1, 32, 1, 64), "middle": (2, 48, 1, 96), "large": (3, 64, 2, 128)}
    members = [
        {
            "name": name,
            "tokens": tokens * (1 + index),
            "shape": {
                "num_hidden_layers": layers,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "head_dim": 32,
                "intermediate_size": intermediate,
            },
        }
        for index, (name, (layers, hidden, heads, intermediate)) in enumerate(shapes.items())
    ]
    document = {
        "name": "chaos",
        "model": {"context_length": 64},
        "tokenizer": {"vocab_size": 400},
        "data": {"train": [{"path": "corpus"}], "held_out": {"share": 0.1}},
        "members": members,
        "patch": {"size": 2, "share": 0.5},
        "parent_credit": 0.5,
        "recipe": {
            "tokens_per_step": 1024,
            "schedule": {"decay_share": 0.3},
            "checkpoints": {"steps": SAVED_EVERY},
        },
    }
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


class Board:
    """Memory that a child writes and its parent reads: what the child does, how often, how long, and its last step."""

    def __init__(self) -> None:
        self.numbers = np.frombuffer(mmap.mmap(-1, 4096), np.int64)
        self.phase = self.numbers[:1]
        self.step = self.numbers[1:3]
        """CRC of the stage's name, and the steps done in it."""
        self.visits = self.numbers[8 : 8 + len(NAMES)]
        self.seconds = np.frombuffer(self.numbers[64 : 64 + len(NAMES)], np.float64)

    def watch(self) -> None:
        """Have every phase's functions say when they begin and end; only for processes about to end."""
        for index, targets in enumerate(PHASES.values()):
            for target in targets:
                self._wrap(target, index)
        self._count_steps()

    def _wrap(self, target: str, index: int) -> None:
        owner, name = _owner(target)
        real = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            before, began = int(self.phase[0]), time.perf_counter()
            self.phase[0] = index
            self.visits[index] += 1
            try:
                return real(*arguments, **named)
            finally:
                self.phase[0] = before
                self.seconds[index] += time.perf_counter() - began

        setattr(owner, name, watched)

    def _count_steps(self) -> None:
        owner, name = _owner("kinfolk.train.resumable:Resumable.advance")
        real = getattr(owner, name)

        def counted(training: Any, **changes: Any) -> None:
            real(training, **changes)
            self.step[:] = zlib.crc32(training._course.name.encode()), training.position.step

        setattr(owner, name, counted)


def _owner(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    return owner, name


def command(family: Path, run: Path, background: bool) -> int:
    """What `kinfolk build` does, in this process; its exit code."""
    from kinfolk.cli.app import main

    sys.argv = ["kinfolk", "build", str(family), "--run", str(run), *(["--background-saving"] if background else [])]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def start(work: Callable[[], int], board: Board, log: Path) -> int:
    """Fork a process that does `work` under the board's eyes; forking saves the seconds that imports take."""
    board.numbers[:] = 0
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        board.watch()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass(frozen=True)
class Aim:
    """Kill `delay` seconds after the phase was entered for the `visit`th time; any time after the start without one."""

    phase: int | None
    visit: int
    delay: float


def run_and_kill(work: Callable[[], int], board: Board, aim: Aim, log: Path) -> tuple[str | None, int]:
    """Start a child and kill it as aimed. Returns the phase it died in (None if it was done before) and its code."""
    child = start(work, board, log)
    began = time.monotonic()
    struck: float | None = began + aim.delay if aim.phase is None else None
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return None, os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if struck is None and board.visits[aim.phase] >= aim.visit:
            struck = now + aim.delay
        if struck is not None and now >= struck:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return (None, code) if code != -signal.SIGKILL else (NAMES[int(board.phase[0])], code)
        if now - began > 600:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("a child hangs")
        time.sleep(0.0003)


@dataclass
class Checks:
    """What an undisturbed build left, and whether others leave the same."""

    reference: Path
    background: bool = False
    """Whether checkpoints take as many steps as they take, so that none is due at a certain one."""
    kills: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    most_lost: int = 0
    lost: int = 0
    broken_lines: int = 0

    def after_kill(self, run: Path, board: Board) -> dict[str, int]:
        """No step is lost beyond the newest checkpoint. Returns the steps at which stages have to go on."""
        newest: dict[str, int] = {}
        for folder in (run / "stages").glob("*"):
            found = checkpoint.latest(folder / "checkpoints")
            if found is not None:
                newest[folder.name] = checkpoint.step_of(found)
                checkpoint.verify(found)
        stage = next((name for name in newest if zlib.crc32(name.encode()) == board.step[0]), None)
        if stage is not None:
            done, due = int(board.step[1]), (int(board.step[1]) - 1) // SAVED_EVERY * SAVED_EVERY
            is_saved = newest[stage] >= due or self.background
            assert is_saved, f"{stage}: {done} steps done, and only those up to {newest[stage]} are saved"
            self.lost += done - newest[stage]
            self.most_lost = max(self.most_lost, done - newest[stage])
        return newest

    def after_start(self, run: Path, known: int, newest: dict[str, int]) -> None:
        """The next process went on where the last checkpoint was, and began no stage anew."""
        for event in events(run)[known:]:
            if event["event"] == "stage_resumed":
                assert event["step"] == newest.get(event["stage"]), event
            if event["event"] == "stage_started":
                assert event["stage"] not in newest, f"{event['stage']} began anew"
            newest.pop(str(event.get("stage")), None)

    def after_build(self, run: Path) -> None:
        """Members, files, ledger and metrics are those of the undisturbed build."""
        assert contents(run / "members") == contents(self.reference / "members"), "members differ"
        assert paths(run) == paths(self.reference), paths(run) ^ paths(self.reference)
        for kind in ("stage_finished", "member_finished", "data_prepared"):
            assert told(run, kind) == told(self.reference, kind), f"{kind} differs"
        assert events(run)[-1]["event"] == "build_finished"
        for metrics in (self.reference / "stages").glob("*/metrics.jsonl"):
            same = run / metrics.relative_to(self.reference)
            assert lines(same) == lines(metrics), f"{same} differs"
        assert (run / "report.html").read_text("utf-8").rstrip().endswith("</html>")
        raw = (run / "ledger.jsonl").read_text("utf-8", "replace").splitlines()
        self.broken_lines += len(raw) - len(events(run))
        self.builds += 1


def events(run: Path) -> list[dict[str, Any]]:
    return Ledger(run / "ledger.jsonl").events()


def told(run: Path, kind: str) -> list[dict[str, Any]]:
    return [steady(event) for event in events(run) if event["event"] == kind]


def lines(metrics: Path) -> list[dict[str, Any]]:
    return [steady(record) for record in read_metrics(metrics)]


def steady(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in record.items()
        if name not in PASSING and not name.startswith(("forecast_", "advised_"))
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def paths(run: Path) -> set[str]:
    """All that lies in a run directory; every process has a TensorBoard file of its own."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name}


def disturb(
    family: Path, work: Path, kills: int, seed: int, say: Callable[[str], None] = print, background: bool = False
) -> Checks:
    """Build the family once in peace, and then under so many kills, as often as that takes."""
    draw, board, log = random.Random(seed), Board(), work / "log"
    reference, run = work / "undisturbed", work / "disturbed"
    for folder in (reference, run):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        assert command(family, reference, background) == 0  # in this process, so that children need not import anything
    shutil.rmtree(reference)
    began = time.monotonic()
    assert run_and_kill(lambda: command(family, reference, background), board, Aim(0, 1, 0.0), log) == (None, 0), (
        log.read_text()
    )
    whole = time.monotonic() - began
    visits, seconds = board.visits.copy(), board.seconds.copy()
    say(f"an undisturbed build takes {whole:.1f} s: {len(told(reference, 'stage_finished'))} stages")

    checks, newest, known = Checks(reference, background), dict[str, int](), 0
    while sum(checks.kills.values()) < kills or run.exists():
        done = sum(checks.kills.values()) >= kills
        aim = Aim(0, 1, 0.0) if done else take_aim(draw, checks.kills, visits, seconds, whole)
        phase, code = run_and_kill(lambda: command(family, run, background), board, aim, log)
        checks.after_start(run, known, newest)
        if phase is None:
            assert code == 0, f"a child ended with {code}:\n{log.read_text()[-3000:]}"
            checks.after_build(run)
            shutil.rmtree(run)
            newest, known = {}, 0
            continue
        checks.kills[phase] += 1
        newest, known = checks.after_kill(run, board), len(events(run))
        total = sum(checks.kills.values())
        if total % 10 == 0:
            say(f"{total} kills, {checks.builds} builds whole, {time.monotonic() - began:.0f} s")
    return checks


def take_aim(draw: random.Random, kills: Counter[str], visits: Any, seconds: Any, whole: float) -> Aim:
    """A moment of a phase that was hit least, or of the whole build."""
    reached = [index for index, count in enumerate(visits) if count]
    if draw.random() < 1 / 3:
        return Aim(None, 0, draw.uniform(0, whole))
    fewest = min(kills[NAMES[index]] for index in reached)
    phase = draw.choice([index for index in reached if kills[NAMES[index]] == fewest])
    visit = draw.randint(1, max(1, int(visits[phase])))
    return Aim(phase, visit, draw.uniform(0, seconds[phase] / visits[phase]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-chaos"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    family = write_family(arguments.work)
    checks = disturb(family, arguments.work, arguments.kills, arguments.seed, background=arguments.background)
    print("\n| phase | kills |\n|---|---|")
    for name in NAMES:
        print(f"| {name} | {checks.kills[name]} |")
    print(f"| all | {sum(checks.kills.values())} |\n")
    print(
        f"{checks.builds} builds, all with the members, files, ledger and metrics of the undisturbed one; "
        f"{checks.lost} steps done twice, at most {checks.most_lost} after a kill (a checkpoint every {SAVED_EVERY}); "
        f"{checks.broken_lines} half lines in ledgers; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
