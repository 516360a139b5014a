"""Memory and time of growing a training state within a build, alone and by several processes.

    python benchmarks/grow_state.py [--processes 1 2 4] [--folder runs/benchmark-grow-state] [--layers 12 --hidden 768]
                                    [--in-memory]

Makes the state of a Llama (weights and both of AdamW's moments, random) of half the layers and half the hidden size,
once, then grows it by `kinfolk.build.growth_state.begin_growth` into a Llama of the size asked for, by default 110
million parameters: in a process of its own, and in so many under torchrun, one thread each. Parent and child are
compared on four sequences of 128 tokens in float32 and float64. With --in-memory also the same growth with both states
and both models in memory, as one script would do it. Prints, for each process, the peak of its memory and what growing
and comparing have added to it; the seconds; and whether all children are the same, bit for bit.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-grow-state"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--job", choices=("prepare", "grow", "in-memory", "digest"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        {"prepare": prepare, "grow": grow, "in-memory": grow_in_memory, "digest": digest}[options.job](options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "parent").is_dir():
        run(options, "prepare", 1)
    digests = {}
    ways = [("grow", count) for count in options.processes] + ([("in-memory", 1)] if options.in_memory else [])
    for job, count in ways:
        shutil.rmtree(options.folder / "child", ignore_errors=True)
        for line in sorted(run(options, job, count)):
            print(f"{job:>9}, {count} processes: {line}", flush=True)
        if job == "grow":
            digests[count] = run(options, "digest", 1)
    print("the same bytes:", len(set(map(tuple, digests.values()))) == 1)
    shutil.rmtree(options.folder / "child", ignore_errors=True)


def run(options: argparse.Namespace, job: str, count: int) -> list[str]:
    """Do a job in processes of its own; the lines that they print."""
    script = [__file__, "--job", job, "--folder", str(options.folder)]
    script += ["--layers", str(options.layers), "--hidden", str(options.hidden)]
    start = (
        [sys.executable] if count == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    )
    done = subprocess.run(
        [*start, *script], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def growth(options: argparse.Namespace) -> Any:
    from kinfolk.build.growth_state import Growth
    from kinfolk.family.shapes import Shape
    from kinfolk.family.spec import Model
    from kinfolk.plan.stages import Dynamics, Operator
    from kinfolk.train.model import config_for

    shapes = [
        Shape(
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            head_dim=64,
            intermediate_size=8 * hidden // 3 // 64 * 64,
        )
        for layers, hidden in ((options.layers // 2, options.hidden // 2), (options.layers, options.hidden))
    ]
    configs = [config_for(shape, Model(context_length=1024), VOCABULARY) for shape in shapes]
    return Growth("llama", (shapes[0], shapes[1]), (configs[0], configs[1]), Operator(), Dynamics())


def prepare(options: argparse.Namespace) -> None:
    import torch

    from kinfolk.family.recipe import Optimizer
    from kinfolk.train import checkpoint
    from kinfolk.train.engine import alone
    from kinfolk.train.model import new_model
    from kinfolk.train.optimizer import make_optimizer
    from kinfolk.train.saving import save

    model = new_model(growth(options).configs[0], 0)
    tensors = checkpoint.tensors_of(model, make_optimizer(model, Optimizer()))
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if not name.startswith("model."):
            tensor.copy_(torch.rand(tensor.shape, generator=draw))
    save(options.folder / "parent", tensors, checkpoint.Position(0, 0), alone())


def tokens() -> Any:
    import torch

    return torch.randint(VOCABULARY, (4, 128), generator=torch.Generator().manual_seed(0))


def parent_of(options: argparse.Namespace) -> Path:
    from kinfolk.train import checkpoint

    found = checkpoint.latest(options.folder / "parent")
    assert found is not None
    return found


def grow(options: argparse.Namespace) -> None:
    from kinfolk.build.growth_state import begin_growth
    from kinfolk.growth.memory import peak_memory_bytes
    from kinfolk.train.checkpoint import Position
    from kinfolk.train.engine import start_engine

    with start_engine() as engine:
        before, began, written = peak_memory_bytes(), time.monotonic(), [0.0, 0, 0]

        def progress(what: str, done: int, total: int) -> None:
            if what == "growing":
                written[:] = time.monotonic() - began, done, peak_memory_bytes() - before

        saving, verification = begin_growth(
            parent_of(options), options.folder / "child", Position(0, 0), growth(options), tokens(), engine, progress
        )
        compared, peak = time.monotonic() - began, peak_memory_bytes()
        saved = saving.finish()
        size = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
        print(
            f"rank {engine.rank} wrote {written[1] / 1e6:,.0f} of {size / 1e6:,.0f} MB, peak {peak / 1e6:,.0f} MB: "
            f"{written[2] / 1e6:,.0f} by growing, {(peak - before - written[2]) / 1e6:,.0f} more by comparing; grown "
            f"after {written[0]:.1f} s, compared after {compared:.1f} s, preserved: {verification.passed}",
            flush=True,
        )


def grow_in_memory(options: argparse.Namespace) -> None:
    from kinfolk.growth.grow import grow_weights
    from kinfolk.growth.memory import peak_memory_bytes
    from kinfolk.growth.optimizer import grow_optimizer
    from kinfolk.growth.verify import verify
    from kinfolk.train import checkpoint
    from kinfolk.train.engine import alone
    from kinfolk.train.model import empty_model, load_parameters
    from kinfolk.train.optimizer import MOMENTS, make_optimizer
    from kinfolk.train.saving import save

    before, began, plan = peak_memory_bytes(), time.monotonic(), growth(options)
    model = empty_model(plan.configs[0])
    from kinfolk.family.recipe import Optimizer

    state = checkpoint.tensors_of(model, make_optimizer(model, Optimizer()))
    checkpoint.load(parent_of(options), state, alone())

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    weights = grow_weights(part("model."), plan.architecture, *plan.shapes, plan.operator)
    parts = [part(f"optimizer.{key}.") for key in (*MOMENTS, "step")]
    grown = grow_optimizer(*parts, plan.architecture, *plan.shapes, plan.operator, plan.dynamics)
    larger = empty_model(plan.configs[1])
    load_parameters(larger, weights)
    after = time.monotonic() - began
    verification = verify(model, larger, tokens(), claims=True)
    compared = time.monotonic() - began
    tensors = {f"model.{name}": value for name, value in weights.items()}
    for key, values in zip((*MOMENTS, "step"), grown, strict=True):
        tensors |= {f"optimizer.{key}.{name}": value for name, value in values.items()}
    save(options.folder / "child", tensors, checkpoint.Position(0, 0), alone())
    peak = peak_memory_bytes()
    print(
        f"peak {peak / 1e6:,.0f} MB: {(peak - before) / 1e6:,.0f} by growing and comparing; grown after {after:.1f} s, "
        f"compared after {compared:.1f} s, preserved: {verification.passed}"
    )


def digest(options: argparse.Namespace) -> None:
    from kinfolk.train import checkpoint
    from kinfolk.train.state_files import saved_tensors

    saved = checkpoint.latest(options.folder / "child")
    assert saved is not None
    found = {
        name: hashlib.sha256(tensor.whole().numpy().tobytes()).hexdigest()
        for name, tensor in saved_tensors(saved).items()
    }
    print(hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest())


if __name__ == "__main__":
    main()
