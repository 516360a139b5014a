"""From a checkpoint folder to a larger one, with its proof and its lineage: what `kinfolk grow` does."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kinfolk import files
from kinfolk.growth import lineage
from kinfolk.growth.checkpoint import (
    Job,
    Progress,
    copy_along,
    open_parent,
    prepare,
    refuse_target,
    told_when_full,
    write_weights,
)
from kinfolk.growth.compare import ClaimError, Comparison
from kinfolk.growth.configs import Changes
from kinfolk.growth.memory import peak_memory_bytes
from kinfolk.growth.names import grown_names, tied_alias
from kinfolk.plan.stages import Operator


@dataclass(frozen=True)
class GrownCheckpoint:
    """What was done and what was measured."""

    operator: Operator
    description: str
    claims_preservation: bool
    breaks: list[str]
    comparison: Comparison | None
    text: str | None
    passed: bool | None
    """None when nothing was claimed or nothing was measured."""
    parameters_before: int
    parameters_after: int
    target_bytes: int
    seconds: float
    growing_seconds: float
    """Of them, until the weights were written."""
    peak_memory_bytes: int
    """Of this process so far, what Python and its packages take included."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what was not measured is null."""
        measured = {name: getattr(self.comparison, name, None) for name in Comparison.__annotations__}
        own = {name: value for name, value in asdict(self).items() if name != "comparison"}
        return own | {name: _finite(value) for name, value in measured.items()}


class GrowthFailedError(ClaimError):
    """A growth whose claim does not hold; nothing of it was kept."""

    def __init__(self, growth: GrownCheckpoint) -> None:
        assert growth.comparison is not None
        super().__init__(growth.comparison, growth.description)
        self.growth = growth


def grow_checkpoint(
    source: Path,
    target: Path,
    changes: Changes,
    operator: Operator,
    *,
    dtype: torch.dtype | None = None,
    verify: bool | None = None,
    verify_dtype: torch.dtype = torch.float32,
    text: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> GrownCheckpoint:
    """Grow the checkpoint in `source` into a new folder `target`.

    `verify` is on by default where the operator claims to preserve the function. Raises KinfolkError for whatever
    cannot be grown, before anything is written, and GrowthFailedError where the claim does not hold; neither
    leaves anything behind.
    """
    began = time.monotonic()
    with open_parent(source) as parent:
        job = prepare(parent, changes, operator, dtype)
        refuse_target(target, source, job.target_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed: what is made from a file that stays can be made again, and a disk may take minutes for it.
        unfinished = files.new_directory(target, flush=False)
        with told_when_full(), unfinished as folder, ThreadPoolExecutor(1) as beside:
            hashes = beside.submit(lineage.parent_hashes, parent)
            job.config.save_pretrained(folder)
            copy_along(source, folder)
            write_weights(job, folder, progress)
            written = time.monotonic() - began
            comparison, origin = None, None
            wanted = not job.breaks if verify is None else verify
            if wanted:
                # Late: the models' code takes time and memory to import, and growth itself does without.
                from kinfolk.growth.proof import prove

                try:
                    comparison, origin = prove(job, folder, verify_dtype, text, progress)
                except ClaimError as error:
                    raise GrowthFailedError(_growth(job, error.comparison, None, False, began, written)) from error
            lineage.write(job, folder, hashes.result(), comparison, origin)
        passed = True if comparison and not job.breaks else None
        return _growth(job, comparison, origin, passed, began, written)


def _growth(
    job: Job, comparison: Comparison | None, text: str | None, passed: bool | None, began: float, written: float
) -> GrownCheckpoint:
    weights, tied = job.parent.weights, job.parent.sizes.shape.tie_word_embeddings
    architecture = job.parent.architecture
    names = [name for name in grown_names(weights, architecture) if not (tied and tied_alias(name, architecture))]
    return GrownCheckpoint(
        operator=job.operator,
        description=job.description,
        claims_preservation=not job.breaks,
        breaks=job.breaks,
        comparison=comparison,
        text=text,
        passed=passed,
        parameters_before=sum(weights[name].bytes // weights[name].dtype.itemsize for name in names),
        parameters_after=sum(tensor.bytes // tensor.dtype.itemsize for tensor in job.layout.values()),
        target_bytes=job.target_bytes,
        seconds=time.monotonic() - began,
        growing_seconds=written,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    return str(value) if isinstance(value, float) and value - value != 0 else value
