"""Grow the training checkpoint of a stage, optimizer state included, into one of its own."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from kinfolk import files
from kinfolk.build.growth_state import Growth, begin_growth
from kinfolk.build.origin import stage_config, verification_text
from kinfolk.build.provenance import versions
from kinfolk.build.run import open_run
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family
from kinfolk.growth.checkpoint import Progress, refuse_target, told_when_full
from kinfolk.growth.claims import claims_preservation, what_breaks
from kinfolk.growth.compare import ClaimError
from kinfolk.growth.configs import Changes, child_config, child_sizes
from kinfolk.growth.memory import peak_memory_bytes
from kinfolk.growth.rows import Stored
from kinfolk.plan.stages import Dynamics, Operator
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone
from kinfolk.train.state_files import saved_tensors


def grow_stage(
    source: Path,
    target: Path,
    changes: Changes,
    operator: Operator,
    dynamics: Dynamics,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Grow the last checkpoint of the stage in `source` (RUN/stages/STAGE) into `target`/checkpoints.

    Verified on the run's held-out documents, in float32 and float64. Neither state is ever in memory.
    Returns plain data; raises KinfolkError for what cannot be grown, and ClaimError where the claim does not hold.
    """
    began = time.monotonic()
    source = source.resolve()
    folder = source.parents[1]
    if not (folder / "family.yaml").is_file():
        raise KinfolkError("is no stage of a run directory", where=str(source), fix="give RUN/stages/STAGE")
    run = open_run(load_family(str(folder / "family.yaml"), ()), folder)
    stage = next((stage for stage in run.plan.stages if stage.name == source.name), None)
    saved = checkpoint.latest(source / "checkpoints")
    if stage is None or stage.shape is None or saved is None:
        raise KinfolkError("there is no stage with a checkpoint here", where=str(source), fix="train the stage first")
    architecture = run.family.model.architecture
    config = stage_config(stage, run.family, run.store)
    child = child_sizes(config, changes, operator)
    after = child_config(config, child, operator, torch.float32)
    shapes = (stage.shape, child.shape)
    refuse_target(target, source, 0)
    with_optimizer = dynamics.optimizer != "reset" and checkpoint.has_optimizer(saved)
    growth = Growth(architecture, shapes, (config, after), operator, dynamics)
    record = {
        "kind": "growth of a training checkpoint",
        "description": growth.description,
        "parent": {"stage": stage.name, "state_sha256": files.sha256(saved / "state.json")},
        "operator": asdict(operator),
        "dynamics": asdict(dynamics),
        "sizes": child.shape.model_dump(),
        "claims_preservation": claims_preservation(operator, *shapes, architecture),
        "breaks": what_breaks(operator, *shapes, architecture),
        "versions": versions(),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with told_when_full(), files.new_directory(target) as unfinished:
        position = replace(checkpoint.position_of(saved), step=0, seconds=0.0)
        text = verification_text(run.store, run.family)
        folder_of_child = unfinished / "checkpoints"
        saving, proof = begin_growth(saved, folder_of_child, position, growth, text, alone(), progress)
        if proof.passed is False:
            raise ClaimError(proof.float64, growth.description)
        parameters = [_numbers(saved_tensors(each)) for each in (saved, saving.finish())]
        after.save_pretrained(unfinished)
        files.write_json(unfinished / "growth.json", record)
    return record | {
        **asdict(proof.float64),
        "passed": proof.passed,
        "text": "the run's held-out documents",
        "parameters_before": parameters[0],
        "parameters_after": parameters[1],
        "optimizer": "grown" if with_optimizer else "none",
        "seconds": time.monotonic() - began,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _numbers(tensors: Mapping[str, Stored]) -> int:
    return sum(math.prod(tensor.shape) for name, tensor in tensors.items() if name.startswith("model."))
