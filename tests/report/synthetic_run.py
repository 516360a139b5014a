"""Writes synthetic run folders in the format of a build."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MEMBERS = {"small": (120_000, 100_000, 3e6), "medium": (480_000, 430_000, 12e6), "large": (1_900_000, 1_800_000, 38e6)}
"""Total and non-embedding parameters, and tokens of each member trained alone."""
TOKENS_PER_STEP = 16384
Maker = Callable[..., Path]


def operator(seed: int) -> dict[str, Any]:
    return {"width": "energy_split", "depth": "zero_exit", "noise": 0.3, "optimizer": "carry", "seed": seed}


def costs(parameters: float, tokens: float) -> dict[str, float]:
    return {"six_nd": 6.0 * parameters * tokens, "matmul": 7.1 * parameters * tokens}


def make_plan(strategy: str) -> dict[str, Any]:
    stages: list[dict[str, Any]] = []
    for index, (name, (total, non_embedding, tokens)) in enumerate(MEMBERS.items()):
        alone, parent = round(tokens / TOKENS_PER_STEP) * TOKENS_PER_STEP, None
        source: dict[str, Any] = {"kind": "scratch", "seed": index}
        if strategy == "progressive" and stages:
            parent = stages[-1]["name"]
            tokens -= MEMBERS[parent][0] * MEMBERS[parent][2] / total
            source = {"kind": "grow", "stage": parent, "operator": operator(index)}
        steps = round(tokens / TOKENS_PER_STEP)
        stages.append(
            {
                "name": name,
                "member": name,
                "parent": parent,
                "source": source,
                "objective": {"kind": "token"},
                "shape": {
                    "num_hidden_layers": 2 + 2 * index,
                    "hidden_size": 64 * 2**index,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 16,
                    "intermediate_size": 192,
                    "tie_word_embeddings": True,
                },
                "parameters": {"counted": total, "total": total, "non_embedding": non_embedding},
                "tokens": steps * TOKENS_PER_STEP,
                "steps": steps,
                "rate": {
                    "peak": 3e-3 * 0.7**index,
                    "warmup_steps": 10,
                    "decay_steps": steps - 10,
                    "decay_shape": "linear",
                    "end_ratio": 0.0,
                },
                "flops": costs(total, steps * TOKENS_PER_STEP),
                "alone": {"tokens": alone, **costs(total, alone)},
            }
        )
    sums = {
        key: {kind: sum(stage[field][kind] for stage in stages) for kind in ("six_nd", "matmul")}
        for key, field in (("independent", "alone"), ("total", "flops"))
    }
    saving = {kind: 1 - sums["total"][kind] / sums["independent"][kind] for kind in ("six_nd", "matmul")}
    return {
        "family": "demo",
        "strategy": strategy,
        "vocab_size": 1024,
        "context_length": 256,
        "tokens_per_step": TOKENS_PER_STEP,
        "counted_parameters": "total",
        **sums,
        "saving": saving,
        "stages": stages,
    }


def loss_at(index: int, share: float, strategy: str) -> float:
    end = 3.2 - 0.32 * index - (0.015 if strategy == "progressive" else 0.0)
    start = 6.93 if strategy == "independent" or index == 0 else end + 0.33
    return end + (start - end) * math.exp(-14 * share) + 0.25 * (1 - share) * (share > 0)


def comparison(difference: float) -> dict[str, float]:
    return {
        "max_abs_logit_difference": difference,
        "mean_abs_logit_difference": difference / 4,
        "kl": difference**2,
        "loss_before": 3.1872,
        "loss_after": 3.1872 + difference / 100,
        "max_abs_logit": 17.5,
    }


def metrics(stage: dict[str, Any], index: int, strategy: str, until: int) -> str:
    lines = []
    for step in range(1, until + 1):
        share = step / stage["steps"]
        wave = 0.06 * math.sin(step * 12.9898) * math.cos(step * 4.1)
        lines.append(
            {
                "step": step,
                "tokens": step * TOKENS_PER_STEP,
                "epoch": 0.3,
                "loss": loss_at(index, share, strategy) + wave,
                "learning_rate": 1e-3,
                "gradient_norm": 0.8,
                "tokens_per_second": 51000.0,
                "seconds": step * 0.08,
            }
        )
        if step % max(1, stage["steps"] // 20) == 0:
            lines.append({"step": step, "held_out_loss": loss_at(index, share, strategy) + 0.03})
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_run(
    folder: Path,
    strategy: str = "progressive",
    stop_at: tuple[int, int] | None = None,
    edit: Callable[[list[dict[str, Any]]], None] | None = None,
    plan: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder; `stop_at` (stage index, step) leaves it unfinished."""
    plan = plan or make_plan(strategy)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    (folder / "family.yaml").write_text(f"name: demo\nstrategy: {strategy}\n", "utf-8")
    events = make_events(plan, stop_at)
    for index, stage in enumerate(plan["stages"]):
        until = stage["steps"] if stop_at is None or index < stop_at[0] else stop_at[1] * (index == stop_at[0])
        if until:
            (folder / "stages" / stage["name"]).mkdir(parents=True)
            text = metrics(stage, index, strategy, until)
            (folder / "stages" / stage["name"] / "metrics.jsonl").write_text(text, "utf-8")
    if edit:
        edit(events)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """A function that writes a run folder of a name; see `write_run`."""

    def make(name: str = "demo", *arguments: Any, **options: Any) -> Path:
        return write_run(tmp_path / "runs" / name, *arguments, **options)

    return make


def make_events(plan: dict[str, Any], stop_at: tuple[int, int] | None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {
            "event": "build_started",
            "command": "kinfolk build examples/demo.yaml --run runs/demo",
            "versions": {"kinfolk": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
            "machine": {"system": "Linux", "cpus": 2, "device": "cpu"},
        },
        {
            "event": "data_prepared",
            "train_tokens": 9_000_000,
            "train_bytes": 25_000_000,
            "train_documents": 3100,
            "held_out_tokens": 410_000,
            "held_out_bytes": 1_150_000,
            "held_out_documents": 160,
            "seconds": 12.5,
        },
    ]
    for index, stage in enumerate(plan["stages"]):
        if stop_at and index > stop_at[0]:
            break
        if stage["parent"]:
            verification = {
                "operator": "x",
                "claims_preservation": True,
                "passed": True,
                "float32": comparison(2.4e-5),
                "float64": comparison(3.7e-14),
            }
            grown = {"event": "grown", "stage": stage["name"], "parent": stage["parent"], "layers": [2, 4]}
            events.append({**grown, "operator": operator(index), "verification": verification, "seconds": 1.25})
        events.append({"event": "stage_started", "stage": stage["name"], "precision": "float32"})
        if stop_at and index == stop_at[0]:
            events.append({"event": "interrupted", "stage": stage["name"], "step": stop_at[1]})
            break
        events += finishing(plan, index, stage)
    else:
        events.append({"event": "build_finished", "seconds": 1234.5})
    return [{**event, "time": 1_760_000_000.0 + 60 * number} for number, event in enumerate(events)]


def finishing(plan: dict[str, Any], index: int, stage: dict[str, Any]) -> list[dict[str, Any]]:
    loss = loss_at(index, 1.0, plan["strategy"]) + 0.03
    bits = loss / math.log(2) * 410_000 / 1_150_000
    earlier = [
        {
            "previous": other["name"],
            "kl_small_to_large": 0.21 * (index - place) - 0.03 * index,
            "kl_large_to_small": 0.24 * (index - place) - 0.03 * index,
            "top1_agreement": 0.81 + 0.02 * index - 0.1 * (index - place),
            "tokens": 8192,
        }
        for place, other in enumerate(plan["stages"][:index])
        if plan["strategy"] == "progressive"
    ]
    held_out = {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits,
        "bits_per_byte_low": bits - 0.0101,
        "bits_per_byte_high": bits + 0.0099,
        "tokens": 410_000,
        "bytes": 1_150_000,
    }
    return [
        {
            "event": "stage_finished",
            "stage": stage["name"],
            "steps": stage["steps"],
            "tokens": stage["tokens"],
            "epochs": stage["tokens"] / 9e6,
            "seconds": stage["flops"]["matmul"] / 2.1e11,
            "checkpoint_seconds": 1.5,
            "final_loss": loss,
            "flops": stage["flops"],
        },
        {
            "event": "member_finished",
            "member": stage["member"],
            "stage": stage["name"],
            "path": f"members/{stage['member']}",
            "sha256": f"{index + 1:x}5c7" * 16,
            "held_out": held_out,
            "samples": [
                {
                    "prompt": "The climate is",
                    "continuation": " temperate, with mild winters and a wet summer" * 3 + ".",
                },
                {"prompt": "Exports:", "continuation": " oil, natural gas,\nfish; $4.1 billion (2019 est.)"},
            ],
            "sampling": {"seed": 7, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 60},
            "kl_from_previous": earlier[-1] if earlier else None,
            "kl_from_earlier": earlier,
        },
    ]
