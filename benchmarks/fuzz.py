"""Feeds damaged and hostile input to everything that reads files: only a KinfolkError may come out, and no file.

    python benchmarks/fuzz.py --cases 24000

Every target reads one kind of file. Hypothesis changes a valid one: bytes flipped, cut out, doubled, or replaced by
what has broken parsers; for JSON and YAML also whole values at any place. A case fails if another exception than
KinfolkError comes out, if it takes longer than ten seconds, if the message lacks where or how to mend it, or if a file
appears or changes outside the folder that the case may write to.
"""

import argparse
import copy
import json
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from kinfolk.build.ledger import Ledger
from kinfolk.build.remaining import given_up, stages_to_train, unfinished_members
from kinfolk.build.run import Run, _known_data
from kinfolk.data.formats import read_file
from kinfolk.data.tokens import open_store
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family, validate_family
from kinfolk.growth.configs import read_config
from kinfolk.growth.safetensors import Weights
from kinfolk.growth.sizes import sizes_of_config
from kinfolk.laws.columns import Choice
from kinfolk.laws.loss import load_law
from kinfolk.laws.own_runs import own_rows
from kinfolk.laws.published import LAWS
from kinfolk.laws.runs import read_runs as read_law_runs
from kinfolk.plan.document import plan_document
from kinfolk.plan.strategies import plan_family
from kinfolk.report.run import read_run
from kinfolk.schedule.own_runs import own_runs
from kinfolk.schedule.runs import read_runs as read_schedule_runs
from kinfolk.train import checkpoint
from kinfolk.train.monitor import read_metrics

SECONDS = 10
"""After which a case counts as hanging."""
HOSTILE = [
    "../x",
    "/etc/x",
    "..",
    ".",
    "a/b",
    "a\\b",
    "C:\\x",
    "CON",
    "nul.txt",
    "a\0b",
    "a\nb",
    "x" * 5000,
    "~",
    "$HOME",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, 10**30, 10**400, 1e308, 5e-324, float("nan"), float("inf"), 0.5, True]
SPECIAL = [
    b"\0",
    b"\xff\xfe",
    b'"',
    b"{",
    b"[" * 200,
    b"]",
    b"null",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b",",
    b"\n",
    b"\\ud800",
]
SPECIAL += [b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"\t", b"-", b"\xe2\x80\xa8"]
FAMILY: dict[str, Any] = {
    "name": "fuzz",
    "model": {"context_length": 64, "vocab_size": 512},
    "tokenizer": {"vocab_size": 400},
    "data": {
        "train": [{"path": "corpus"}],
        "held_out": {"share": 0.1},
        "versions": [{"name": "2026", "train": [{"path": "more"}]}],
    },
    "members": [
        {
            "name": name,
            "tokens": 100_000,
            "shape": {
                "num_hidden_layers": layers,
                "hidden_size": 64,
                "num_attention_heads": 2,
                "head_dim": 32,
                "intermediate_size": 128,
            },
        }
        for name, layers in (("small", 1), ("large", 2))
    ],
    "recipe": {"tokens_per_step": 1024, "schedule": {"decay_share": 0.3}, "spikes": {"deviations": 7.0}},
    "strategy": "trunk",
}  # fmt: skip
RUNS = "parameters,tokens,loss\n" + "\n".join(
    f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n in (1e7, 1e8) for d in (1e9, 2e9, 8e9)
)
CURVE = "step,learning_rate,loss\n" + "\n".join(
    f"{step},{0.003 * (1 - step / 40)},{3 - step / 50}" for step in range(1, 40)
)

SCALARS = st.one_of(st.none(), st.sampled_from(NUMBERS), st.sampled_from(HOSTILE), st.text(max_size=6), st.integers())
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from(HOSTILE), SCALARS, max_size=2)
)


@st.composite
def bytes_like(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with one to four places flipped, cut out, doubled or replaced."""
    content = whole
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 60)))
        piece = content[start:end]
        new = draw(st.one_of(st.sampled_from(SPECIAL), st.binary(max_size=4), st.sampled_from([b"", piece * 2])))
        content = content[:start] + new + content[end:]
    return content


@st.composite
def values_like(draw: st.DrawFn, whole: Any) -> Any:
    """A document with one to three values replaced, removed, added or moved elsewhere."""
    document = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "move"]))
        if action == "replace":
            container[key] = draw(VALUES)
        elif action == "remove":
            del container[key]
        elif action == "add":
            container[draw(st.sampled_from(HOSTILE))] = draw(VALUES) if isinstance(container, dict) else None
        else:
            other, name = places[draw(st.integers(0, len(places) - 1))]
            if name in other if isinstance(other, dict) else name < len(other):
                container[key] = copy.deepcopy(other[name])
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with a key of it; of lists, whose places move, only the dictionaries in them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner)


@dataclass(frozen=True)
class Target:
    """Something that reads a file: what is written before, and what reads it."""

    inputs: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path, bytes], None]
    share: float = 1.0
    """Of the cases, in relation to the other targets."""


def in_yaml(document: Any) -> bytes:
    return yaml.safe_dump(document, sort_keys=False).encode("utf-8", "surrogatepass")


def json_like(document: Any) -> Callable[[], st.SearchStrategy[bytes]]:
    text = json.dumps(document).encode()
    return lambda: st.one_of(bytes_like(text), values_like(document).map(lambda value: json.dumps(value).encode()))


def read_family(folder: Path, content: bytes) -> None:
    path = folder / "family.yaml"
    path.write_bytes(content)
    loaded = load_family(str(path))
    plan = plan_document(loaded.family, plan_family(loaded.family, "family.yaml"))
    json.dumps(plan, allow_nan=False)
    names = [member.name for member in loaded.family.members] + [each.name for each in loaded.family.data.versions]
    for name in [loaded.family.name, *names, *(stage["name"] for stage in plan["stages"])]:
        for place in ("members", "stages", "data/versions"):
            assert (folder / place / name).resolve().parent == (folder / place).resolve(), name


def read_document(folder: Path, content: bytes) -> None:
    validate_family(json.loads(content), "family.yaml")


def read_runs_table(folder: Path, content: bytes) -> None:
    (folder / "runs.csv").write_bytes(content)
    read_law_runs([folder / "runs.csv"], Choice())


def read_curve(folder: Path, content: bytes) -> None:
    (folder / "curve.csv").write_bytes(content)
    read_schedule_runs([folder / "curve.csv"])


def read_law_file(folder: Path, content: bytes) -> None:
    (folder / "law.json").write_bytes(content)
    load_law(folder / "law.json").predict(1e8, 1e9)


def in_run(name: str) -> Callable[[Path, bytes], None]:
    """A file of a run directory, read by all who read run directories."""

    def read(folder: Path, content: bytes) -> None:
        run = folder / "run"
        plan = plan_document(*_planned())
        (run / "stages" / plan["stages"][0]["name"]).mkdir(parents=True)
        (run / "family.yaml").write_text(yaml.safe_dump(FAMILY))
        (run / "plan.json").write_text(json.dumps(plan))
        (run / "ledger.jsonl").write_text(LEDGER)
        (run / name.replace("STAGE", plan["stages"][0]["name"])).write_bytes(content)
        readers: list[Callable[[], Any]] = [
            lambda: Ledger(run / "ledger.jsonl").events(),
            lambda: read_metrics(run / "stages" / plan["stages"][0]["name"] / "metrics.jsonl"),
            lambda: read_run(run),
            lambda: own_rows(run),
            lambda: own_runs(run, {}),
        ]
        _all(readers)

    return read


def read_build_ledger(folder: Path, content: bytes) -> None:
    """What a build makes of a ledger before it goes on."""
    (folder / "ledger.jsonl").write_bytes(content)
    family, plan = _planned()
    ledger = Ledger(folder / "ledger.jsonl")
    run = Run(folder, family, plan, {}, {}, None, ledger)  # type: ignore[arg-type]
    _all(partial(reader, run) for reader in (unfinished_members, stages_to_train, given_up))
    _known_data(ledger)


def read_state(folder: Path, content: bytes) -> None:
    saved = folder / "step-00000004"
    saved.mkdir()
    (saved / "state.json").write_bytes(content)
    readers = (checkpoint.position_of, checkpoint.has_optimizer, checkpoint.verify)
    _all([*(partial(reader, saved) for reader in readers), partial(checkpoint.set_aside_damaged, folder)])


def read_manifest(folder: Path, content: bytes) -> None:
    (folder / "data.json").write_bytes(content)
    open_store(folder)


def read_config_file(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    sizes_of_config(read_config(folder))


def read_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with Weights(folder) as weights:
        for entry in weights.values():
            entry.whole()


def read_index(folder: Path, content: bytes) -> None:
    (folder / "a.safetensors").write_bytes(safetensors_file(HEADER))
    (folder / "model.safetensors.index.json").write_bytes(content)
    with Weights(folder):
        pass


def read_texts(folder: Path, content: bytes) -> None:
    names = ("a.jsonl", "a.txt", "a.jsonl.gz", "a.parquet")
    for name in names:
        (folder / name).write_bytes(content)
    _all(partial(_read_whole, folder / name) for name in names)


def _read_whole(path: Path) -> None:
    for _ in read_file(path, path.name, "text", "family.yaml"):
        pass


def _all(readers: Iterable[Callable[[], Any]]) -> None:
    """Call every reader; the first refusal is raised once all have been called."""
    refusals = []
    for read in readers:
        try:
            read()
        except KinfolkError as error:
            check(error)
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _planned() -> tuple[Any, Any]:
    family = validate_family(FAMILY, "family.yaml")
    return family, plan_family(family, "family.yaml")


def safetensors_file(header: Any, extra: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + extra


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    "__metadata__": {"format": "pt"},
}
INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "auto_map": {"AutoConfig": "evil.Config"},
}  # fmt: skip
STATE = {
    "step": 4,
    "sequences": 32,
    "seconds": 1.0,
    "positions": 9,
    "patch_size": 1,
    "optimizer": True,
    "files": {"../x": "0"},
}
MANIFEST = {
    "format": 1, "dtype": "<u2", "vocab_size": 300, "separator_id": 1, "parts": {}, "made_from": {},
    "files": {"train.bin": {"size": 4, "sha256": "00"}, "../../etc/passwd": {"size": 4, "sha256": "00"}},
}  # fmt: skip
LAW = next(iter(LAWS.values())).model_dump(mode="json")
EVENTS = [
    {"event": "data_prepared", "time": 1.0, "train_tokens": 9, "train_bytes": 9, "train_documents": 1,
     "held_out_tokens": 1, "held_out_bytes": 1, "held_out_documents": 1, "sha256": "0"},
    {"event": "build_started", "time": 2.0, "command": "kinfolk build", "versions": {}, "machine": {}},
    {"event": "stage_started", "time": 3.0, "stage": "trunk-small", "precision": "float32"},
    {"event": "stage_finished", "time": 4.0, "stage": "trunk-small", "steps": 3, "tokens": 9, "epochs": 0.1,
     "seconds": 1.0, "flops": {"six_nd": 1, "matmul": 1}},
    {"event": "member_finished", "time": 5.0, "member": "small", "stage": "small", "path": "members/small",
     "sha256": "0", "held_out": {"loss": 3.0, "perplexity": 20.0, "bits_per_byte": 1.2, "tokens": 9, "bytes": 9}},
    {"event": "stage_diverged", "time": 6.0, "stage": "large", "step": 3, "fault": "loss nan"},
]  # fmt: skip
LEDGER = "".join(json.dumps(event) + "\n" for event in EVENTS)
METRICS = "".join(
    json.dumps({"step": step, "loss": 3.0, "held_out_loss": 3.1, "learning_rate": 1e-3}) + "\n" for step in range(1, 9)
)


def lines_like(text: str) -> Callable[[], st.SearchStrategy[bytes]]:
    """JSON lines: bytes changed, or the values of the lines."""
    records = [json.loads(line) for line in text.splitlines()]

    def written(values: list[Any]) -> bytes:
        return b"".join(json.dumps(value).encode() + b"\n" for value in values)

    def one_changed(index: int) -> st.SearchStrategy[bytes]:
        return values_like(records[index]).map(lambda value: written([*records[:index], value, *records[index + 1 :]]))

    return lambda: st.one_of(bytes_like(text.encode()), st.integers(0, len(records) - 1).flatmap(one_changed))


TARGETS: dict[str, Target] = {
    "family file, as text": Target(lambda: bytes_like(in_yaml(FAMILY)), read_family, 3),
    "family file, values": Target(lambda: values_like(FAMILY).map(in_yaml), read_family, 3),
    "table of runs (CSV)": Target(lambda: bytes_like(RUNS.encode()), read_runs_table, 2),
    "loss curve (CSV)": Target(lambda: bytes_like(CURVE.encode()), read_curve, 2),
    "law (JSON)": Target(json_like(LAW), read_law_file),
    "plan.json of a run": Target(lambda: json_like(plan_document(*_planned()))(), in_run("plan.json")),
    "ledger, by its readers": Target(lines_like(LEDGER), in_run("ledger.jsonl")),
    "ledger, by a build": Target(lines_like(LEDGER), read_build_ledger, 2),
    "metrics": Target(lines_like(METRICS), in_run("stages/STAGE/metrics.jsonl")),
    "checkpoint, state.json": Target(json_like(STATE), read_state, 2),
    "tokens, data.json": Target(json_like(MANIFEST), read_manifest, 2),
    "checkpoint, config.json": Target(json_like(CONFIG), read_config_file, 2),
    "safetensors, bytes": Target(lambda: bytes_like(safetensors_file(HEADER)), read_safetensors, 2),
    "safetensors, header": Target(
        lambda: st.one_of(values_like(HEADER), bytes_like(json.dumps(HEADER).encode())).map(safetensors_file),
        read_safetensors,
        2,
    ),
    "safetensors, index": Target(json_like(INDEX), read_index, 2),
    "texts": Target(lambda: bytes_like(b'{"text": "one"}\n{"text": "two", "id": 3}\n'), read_texts),
}  # fmt: skip


def check(error: KinfolkError) -> None:
    """A message is short, and says what to do."""
    assert error.problem and error.fix, repr(str(error))
    assert len(str(error)) < 3000, len(str(error))


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError("hangs")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@dataclass
class Fuzzed:
    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def fuzz(target_name: str, cases: int, number: int, result: Fuzzed) -> None:
    """Run a target on so many inputs; the first that fails is shrunk and raised."""
    target = TARGETS[target_name]
    around = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (around / "bystander").write_text("untouched")
    folder = around / "a" / "b"

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs())
    def run(content: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result.cases[target_name] += 1
        with _at_most(SECONDS):
            try:
                target.read(folder, content)
            except KinfolkError as error:
                result.refused[target_name] += 1
                check(error)
        assert {path.relative_to(around).parts[0] for path in around.iterdir()} == {"a", "bystander"}
        assert list((around / "a").iterdir()) == [folder]
        assert (around / "bystander").read_text() == "untouched"

    try:
        run()
    finally:
        shutil.rmtree(around, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    arguments = parser.parse_args()
    whole = sum(TARGETS[name].share for name in arguments.only)
    result, failed = Fuzzed(), []
    print("| what is read | cases | refused with a message | seconds |\n|---|---|---|---|", flush=True)
    for name in arguments.only:
        began = time.monotonic()
        try:
            fuzz(name, round(arguments.cases * TARGETS[name].share / whole), arguments.seed, result)
        except BaseException as error:
            failed.append((name, error))
        seconds = time.monotonic() - began
        print(f"| {name} | {result.cases[name]:,} | {result.refused[name]:,} | {seconds:.0f} |", flush=True)
    print(f"| all | {sum(result.cases.values()):,} | {sum(result.refused.values()):,} | |")
    for name, error in failed:
        print(f"\n{name}:", file=sys.stderr)
        sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
