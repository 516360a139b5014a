"""Growth of a checkpoint against copying a file of the target's size.

    python benchmarks/grow.py [--source-gigabytes 1] [--folder runs/benchmark-grow] [--rounds 3] [--cold-only] [--peer]
                              [--hypercloning CHECKOUT]

Makes a Llama of random bfloat16 weights once, then times, in turn: `cp` of a file of the target's size; the growth of
the checkpoint without verification, in this process (the imports are paid once, and told apart); and the same job with
both models in memory: by our own script through transformers (--peer), and by apple/ml-hypercloning where a checkout of
it is given (its code runs as it is, see `grow_by_hypercloning`). "Cold" means that the page cache holds nothing of the
source: its pages are given back with posix_fadvise before the round. Prints wall and processor seconds and their ratio
to cp.
"""

import argparse
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

JOBS = ("grow", "peer", "hypercloning")
SHAPE = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}
CHANGES = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 11264,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source-gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-grow"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="also grow whole models in memory; takes 3 x the target")
    parser.add_argument(
        "--hypercloning", type=Path, help="a checkout of github.com/apple/ml-hypercloning to run as well"
    )
    parser.add_argument("--cold-only", action="store_true", help="no rounds with the source in the page cache")
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source, target = arguments.folder / "source", arguments.folder / "target"
    if arguments.child == "hypercloning":
        grow_by_hypercloning(arguments.hypercloning, source, target)
        return
    if arguments.child:
        (grow if arguments.child == "grow" else grow_in_memory)(source, target)
        return
    if not (source / "config.json").exists():
        make_source(source, arguments.source_gigabytes)
    jobs = ["cp", "grow", *(["peer"] if arguments.peer else []), *(["hypercloning"] if arguments.hypercloning else [])]
    size = target_bytes(source)
    copied = arguments.folder / "copied.bin"
    with open(copied, "wb") as file:
        for _ in range(0, size, 1 << 24):
            file.write(os.urandom(1 << 12) * (1 << 12))
    print(f"source {files_bytes(source):,} bytes, target {size:,} bytes")
    print("| round | job | seconds | processor seconds | of cp | peak memory (MB) |\n|---|---|---|---|---|---|")
    for number in range(2 * arguments.rounds):
        cold = number % 2 == 0
        if arguments.cold_only and not cold:
            continue
        reference = 0.0
        for job in jobs:
            shutil.rmtree(target, ignore_errors=True)
            (arguments.folder / "copy.bin").unlink(missing_ok=True)
            os.sync()
            for path in (*source.iterdir(), copied) if cold else ():
                forget(path)
            if job == "cp":
                wall, processor = timed(
                    lambda: subprocess.run(["cp", copied, arguments.folder / "copy.bin"], check=True)
                )
                reference, peak = wall, 0
            else:
                wall, processor, peak = in_child(job, arguments)
            label = "cold" if cold else "warm"
            print(
                f"| {label} {number // 2} | {job} | {wall:.2f} | {processor:.2f} | {wall / reference:.2f} "
                f"| {peak / 1e6:,.0f} |",
                flush=True,
            )


def make_source(folder: Path, gigabytes: float) -> None:
    """A Llama of hidden size 2,048 with as many layers as fill the size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    per_layer = 2048 * (2 * 2048 + 2 * 512 + 3 * 5632)
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * 32000 * 2048) / per_layer))
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, vocab_size=32000, **SHAPE)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02) if parameter.dim() > 1 else parameter.data.fill_(1.0)
    model.save_pretrained(folder, max_shard_size="1GB")


def target_bytes(source: Path) -> int:
    from kinfolk.growth.checkpoint import open_parent, prepare
    from kinfolk.plan.stages import Operator

    with open_parent(source) as parent:
        return prepare(parent, dict(CHANGES), Operator()).target_bytes


def grow(source: Path, target: Path) -> None:
    from kinfolk.growth.product import grow_checkpoint
    from kinfolk.plan.stages import Operator

    report(lambda: grow_checkpoint(source, target, dict(CHANGES), Operator(), verify=False))


def grow_in_memory(source: Path, target: Path) -> None:
    """HyperCloning's way: load the model, tile every weight, add noise, save, all of it in memory (float32 noise)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def run() -> None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        config = AutoConfig.from_pretrained(source)
        for name, value in CHANGES.items():
            setattr(config, name, value)
        with torch.device("meta"):
            larger = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        larger = larger.to_empty(device="cpu")
        for (name, small), (_, large) in zip(model.named_parameters(), larger.named_parameters(), strict=True):
            weight = small.data.float()
            if weight.dim() == 1:
                large.data.copy_(weight.repeat(2))
            elif "embed_tokens" in name:
                large.data.copy_(weight.repeat(1, 2))
            else:
                rows = 1 if "lm_head" in name else 2
                grown = weight.repeat(rows, 2) / 2
                half = weight.shape[1]
                noise = torch.randn(grown.shape[0], half) * grown.std()
                grown[:, :half] += noise
                grown[:, half:] -= noise
                large.data.copy_(grown[: large.shape[0], : large.shape[1]])
        larger.save_pretrained(target)

    report(run)


def grow_by_hypercloning(checkout: Path, source: Path, target: Path) -> None:
    """apple/ml-hypercloning (arXiv 2409.12903) on the same job: its code, unedited, in a transformers that is newer.

    Two things that it expects are given to it from outside: the package of old OLMo models, which it imports and does
    not need here, and the head counts that attention layers had as attributes before transformers 4.48.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention

    for name in ("hf_olmo", "hf_olmo.configuration_olmo", "hf_olmo.modeling_olmo"):
        sys.modules[name] = MagicMock()
    attention: Any = LlamaAttention
    attention.num_heads = property(lambda layer: layer.config.num_attention_heads)
    attention.num_key_value_heads = property(lambda layer: layer.config.num_key_value_heads)
    sys.path.insert(0, str(checkout))
    clone = importlib.import_module("hypercloning").cloneModel

    def run() -> None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        larger = clone(model, embedding_dim_multiplier=2, up_project_multiplier=2, snr_db=10.0)
        larger.save_pretrained(target)

    report(run)


def report(work: Callable[[], object]) -> None:
    wall, processor = timed(work)
    from kinfolk.growth.memory import peak_memory_bytes

    print(json.dumps([wall, processor, peak_memory_bytes()]))


def in_child(job: str, arguments: argparse.Namespace) -> tuple[float, float, int]:
    """The seconds of a job without its imports, in a process of its own."""
    command = [sys.executable, __file__, "--child", job, "--folder", str(arguments.folder)]
    command += ["--hypercloning", str(arguments.hypercloning)] if arguments.hypercloning else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, processor, peak = json.loads(done.stdout.splitlines()[-1])
    return wall, processor, peak


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds, those of child processes included."""
    began, processor = time.perf_counter(), seconds_of_processor()
    work()
    return time.perf_counter() - began, seconds_of_processor() - processor


def seconds_of_processor() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def forget(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
