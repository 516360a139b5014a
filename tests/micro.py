"""A family that builds in about a second, on a corpus from a seeded grammar, and child processes to build it in."""

import faulthandler
import os
import random
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from kinfolk.build.ledger import Ledger
from kinfolk.build.origin import begin_stage
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily, load_family
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Plan, Stage
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import MainStopped
from kinfolk.train.interruption import Interrupted
from kinfolk.train.monitor import read_metrics
from kinfolk.train.state_files import saved_tensors

SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
}
LARGE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}
SEQUENCES_PER_STEP = 8
CONTEXT = 16


def write_corpus(path: Path, documents: int = 80) -> None:
    nouns = ["raven", "mill", "lantern", "river", "cobbler", "façade", "学校"]
    verbs = ["sees", "mends", "follows", "forgets"]
    draw = random.Random(7)
    path.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        lines = [f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}." for _ in range(8)]
        (path / f"{number:03}.txt").write_text(f"Story {number}.\n" + "\n".join(lines) + "\n", "utf-8")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(result.get(key), dict) and key not in ("shape", "tokenizer")
        result[key] = merged(result[key], value) if inside else value
    return result


def family(folder: Path, *overrides: str, **changes: Any) -> LoadedFamily:
    """Two members of a dozen steps of 8 sequences of 16 tokens, saved every 4 steps; the file is written to folder."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus")
    document = {
        "name": "micro",
        "model": {"context_length": CONTEXT},
        "tokenizer": {"vocab_size": 300},
        "data": {"train": [{"path": "corpus"}], "held_out": {"share": 0.15}},
        "members": [
            {"name": "small", "shape": SMALL, "tokens": 12 * SEQUENCES_PER_STEP * CONTEXT},
            {"name": "large", "shape": LARGE, "tokens": 14 * SEQUENCES_PER_STEP * CONTEXT},
        ],
        "recipe": {
            "tokens_per_step": SEQUENCES_PER_STEP * CONTEXT,
            "peak_learning_rate": 0.01,
            "held_out_every_steps": 5,
            "precision": "float32",
            "checkpoints": {"steps": 4},
        },
    }
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(merged(document, changes)), "utf-8")
    return load_family(str(path), overrides)


class RecordingView:
    """Keeps what it is told; `on_step` is called with the number of steps seen over all stages."""

    def __init__(self, on_step: Callable[[int], None] = lambda count: None) -> None:
        self.said: list[str] = []
        self.prepared_for: set[str] = set()
        self.started: list[tuple[str, int]] = []
        self.steps = 0
        self._on_step = on_step

    def planned(self, name: str, stages: Any) -> None: ...

    def prepared(self, what: str, done: int, total: int | None) -> None:
        self.prepared_for.add(what)

    def stage_started(self, name: str, steps: int, first_step: int) -> None:
        self.started.append((name, first_step))

    def stepped(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.steps += 1
            self._on_step(self.steps)

    def say(self, message: str) -> None:
        self.said.append(message)


def first_state(
    stage: Stage, plan: Plan, family: Family, store: TokenStore, stages: Path
) -> tuple[dict[str, Tensor], Position, dict[str, Any] | None]:
    """Tensors and position that a stage starts from, and what the ledger says of a growth; `stages` stays as it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if stage.parent is not None:
            (folder / stage.parent).symlink_to(stages / stage.parent)
        begun = begin_stage(stage, plan, family, store, folder)
        saved = begun.saving.finish()
        tensors = {name: tensor.whole() for name, tensor in saved_tensors(saved).items() if name != "random.cpu"}
        return tensors, checkpoint.position_of(saved), begun.grown


def members_of(run: Path) -> dict[str, bytes]:
    folder = run / "members"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(run: Path) -> list[Path]:
    return list(run.rglob("*.unfinished"))


def check_whole(folder: Path, expected: dict[str, bytes]) -> None:
    """A build is finished, with these members, and ledger, metrics and checkpoints are as they should be."""
    assert members_of(folder) == expected
    assert leftovers(folder) == []
    ledger = Ledger(folder / "ledger.jsonl")
    assert len(ledger.events("data_prepared")) == 1
    assert ledger.events()[-1]["event"] == "build_finished"
    for finished in ledger.events("stage_finished"):
        folder_of_stage = folder / "stages" / finished["stage"]
        records = read_metrics(folder_of_stage / "metrics.jsonl")
        assert [each["step"] for each in records if "loss" in each] == list(range(1, finished["steps"] + 1))
        assert len([each for each in records if "held_out_loss" in each]) == -(-finished["steps"] // 5)
        assert len(list((folder_of_stage / "checkpoints").iterdir())) == 1


def start_child(work: Callable[[], object], log: Path | None = None, **environment: str) -> int:
    """Fork a process that does `work` and exits as the command line would; returns its id. Saves the imports."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        faulthandler.enable(sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        work()
        code = 0
    except Interrupted as stop:
        code = 128 + stop.number
    except KinfolkError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except MainStopped:
        code = 3
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(work: Callable[[], object], log: Path | None = None) -> int:
    return exit_code(start_child(work, log))


def in_ranks(work: Callable[[], object], log: Path | None = None, count: int = 2) -> list[int]:
    """Do `work` in the processes of a job, as torchrun would start them; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [start_child(work, log, RANK=str(rank), LOCAL_RANK=str(rank), **job) for rank in range(count)]
    return [exit_code(child) for child in children]
