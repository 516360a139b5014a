"""Ways of growing, compared at the same budget: one parent, one stage for every operator and policy, three seeds.

    python benchmarks/operators.py run      all probes; goes on where it was stopped
    python benchmarks/operators.py show     the table of docs/results.md, from whatever has finished

A small decoder grows once in width and once in depth, from its state before the decay (stable) and from the finished
one (decayed). Every candidate trains on the same tokens with the same schedule; the table gives its held-out loss after
5, 20 and 100 % of the stage, less that of the first candidate with the same seed. Reads ../shared/data/classics and
says so where it is absent. One single-thread process for each seed and parent.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from progressive import CLASSICS, HERE, prepare_data

PARENT = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 1, "head_dim": 32, "intermediate_size": 128}
CHILDREN = {
    "width": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 176},
    "depth": {"num_hidden_layers": 4},
}
# Stated here, so that other defaults of a family file do not change what is compared.
BASE = {"width": "energy_split", "noise": 1.0, "depth": "zero_exit", "block": "copied"}
ASYMMETRIC = {"optimizer": "asymmetric"}
# SPARKLING's 250 steps are meant for long runs; these stages have about 360.
SPARKLING = ASYMMETRIC | {"rates": "rewarm_new", "rewarm_steps": 40}
CANDIDATES: dict[str, dict[str, dict[str, Any]]] = {
    "width": {
        "energy_split, noise 1": {},
        "noise 0.3": {"noise": 0.3},
        "no breaker": {"noise": 0.0},
        "uneven shares, no noise": {"noise": 0.0, "split": "uneven"},
        "lemon": {"width": "lemon", "noise": 0.0},
        "zero_pad": {"width": "zero_pad", "noise": 0.0},
        "fpi": {"width": "fpi", "noise": 0.0},
        "aki": {"width": "aki", "noise": 0.0},
        "optimizer reset": {"optimizer": "reset"},
        "asymmetric reset": ASYMMETRIC,
        "sparkling": SPARKLING,
        "inherited rates": {"rates": "inherit"},
        "zero_pad, inherited rates": {"width": "zero_pad", "noise": 0.0, "rates": "inherit"},
        "zero_pad, sparkling": {"width": "zero_pad", "noise": 0.0} | SPARKLING,
    },
    "depth": {
        "zero_exit on top": {},
        "zero_exit, drawn blocks": {"block": "drawn"},
        "zero_exit evenly": {"placement": "even"},
        "stack": {"depth": "stack"},
        "interpolate": {"depth": "interpolate"},
        "zero_exit on top, reset": {"optimizer": "reset"},
        "zero_exit on top, sparkling": SPARKLING,
    },
}
STARTS = {"stable": "undecayed", "decayed": "finished"}
SHARES = (0.05, 0.2, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show", "one"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-operators"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run", help="KIND-START-seedSEED, for `one`")
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    runs = ["-".join((kind, start, f"seed{seed}")) for seed, kind, start in _runs(arguments.seeds)]
    if arguments.what == "one":
        probe_one(arguments.work, arguments.run)
        return
    if arguments.what == "run":
        prepare_data(arguments.work, family_file(arguments.work, "width"))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(partial(in_process, arguments.work), runs))
    show(arguments.work, arguments.seeds)


def _runs(seeds: int) -> list[tuple[int, str, str]]:
    return list(itertools.product(range(seeds), CHILDREN, STARTS))


def family_file(work: Path, kind: str) -> Path:
    """Write the family file of a parent and a child."""
    document = yaml.safe_load((HERE / "operators.yaml").read_text())
    document["members"] = [{"name": "parent", "shape": PARENT}, {"name": "child", "shape": PARENT | CHILDREN[kind]}]
    document["data"] = {
        "train": [{"path": str(CLASSICS / "train-00.jsonl.bz2")}],
        "held_out": {"sources": [{"path": str((work / "held_out.jsonl").resolve())}]},
    }
    work.mkdir(parents=True, exist_ok=True)
    family = work / f"{kind}.yaml"
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    return family


def in_process(work: Path, name: str) -> None:
    """Run one seed and parent in a process of its own, so that it has one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "one", "--work", str(work), "--run", name]
    with open(work / f"{name}.log", "a") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
    print(f"{name}: {'done' if code == 0 else f'FAILED, see {log.name}'}", flush=True)


def probe_one(work: Path, name: str) -> None:
    """Train a parent and all candidates from it."""
    from rich.console import Console

    from kinfolk.build.build import build
    from kinfolk.build.view import LiveView
    from kinfolk.family.load import load_family
    from kinfolk.family.recipe import Growth
    from kinfolk.plan.probe import probe

    kind, start, seed = name.split("-")
    loaded = load_family(str(family_file(work, kind)), [f"recipe.seed={seed.removeprefix('seed')}"])
    candidates = {
        _slug(label): Growth.model_validate(BASE | fields | {"start": STARTS[start]})
        for label, fields in CANDIDATES[kind].items()
    }
    if not (work / name / "data").exists():
        shutil.copytree(work / "data", work / name / "data")
    with LiveView(Console(stderr=True)) as view:
        build(loaded, work / name, view, partial(probe, candidates=candidates))


def _slug(label: str) -> str:
    return label.replace(",", "").replace(" ", "_")


def losses(work: Path, name: str, label: str) -> list[float] | None:
    """Held-out loss of a candidate after each share of its stage; None where it has not finished."""
    path = work / name / "stages" / f"child-{_slug(label)}" / "metrics.jsonl"
    plan = work / name / "plan.json"
    if not path.exists() or not plan.exists():
        return None
    # All candidates have the same steps.
    total = json.loads(plan.read_text())["stages"][-1]["steps"]
    found = {
        record["step"]: record["held_out_loss"]
        for record in map(json.loads, path.read_text().splitlines())
        if "held_out_loss" in record
    }
    if total not in found:
        return None
    return [found[min(found, key=lambda step: abs(step - share * total))] for share in SHARES]


def show(work: Path, seeds: int) -> None:
    """Means over the seeds of the loss of the first candidate, and of the others less that."""
    for kind, candidates in CANDIDATES.items():
        print(f"\n{kind}: held-out nats per token, less those of {next(iter(candidates))!r} with the same seed\n")
        print("| candidate | parent | 5 % | 20 % | 100 % | per seed at 100 % |")
        print("|---|---|---|---|---|---|")
        for start in STARTS:
            found = {
                label: {seed: losses(work, f"{kind}-{start}-seed{seed}", label) for seed in range(seeds)}
                for label in candidates
            }
            first = next(iter(found.values()))
            for label, by_seed in found.items():
                rows = [
                    [
                        value - (base if label != next(iter(candidates)) else 0)
                        for value, base in zip(row, first[seed], strict=True)
                    ]
                    for seed, row in by_seed.items()
                    if row and first[seed]
                ]
                if rows:
                    sign = "+" if label != next(iter(candidates)) else ""
                    means = [f"{statistics.mean(column):{sign}.4f}" for column in zip(*rows, strict=True)]
                    last = ", ".join(f"{row[-1]:{sign}.4f}" for row in rows)
                    print(f"| {label} | {start} | {' | '.join(means)} | {last} |")


if __name__ == "__main__":
    main()
