"""What a grown checkpoint says of where it comes from: growth.json, and its model card. No times and no paths, so that
the same command gives the same bytes."""

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

import kinfolk
from kinfolk import files
from kinfolk.card.card import Card, Part, Table, load_code, render
from kinfolk.card.metadata import facts_of
from kinfolk.errors import KinfolkError
from kinfolk.growth.checkpoint import Job, Parent
from kinfolk.growth.compare import Comparison
from kinfolk.growth.grown_axes import GrownAxes
from kinfolk.growth.sizes import Sizes
from kinfolk.json_text import parse_json

RECORD = "growth.json"


def parent_hashes(parent: Parent) -> dict[str, str]:
    """SHA-256 of the parent's config and weights, by file name."""
    return {path.name: files.sha256(path) for path in (parent.folder / "config.json", *parent.weights.paths)}


def maps_digest(job: Job) -> str:
    """SHA-256 over where every tensor of the child comes from, and every index map and factor that makes it."""
    digest = hashlib.sha256()
    for name, origin in job.origins.items():
        digest.update(f"{name}<{origin.name}<{origin.following}:{origin.is_silent}:{origin.expert_copy};".encode())
    grown = GrownAxes(job.parent.sizes, job.child, job.operator, job.parent.architecture)
    for axes in sorted({origin.axes for origin in job.origins.values()}, key=repr):
        for part in axes:
            growth = grown.axis(part)
            digest.update(repr(part).encode())
            if growth:
                digest.update(growth.index.numpy().tobytes() + growth.value.numpy().tobytes())
    return digest.hexdigest()


def record(job: Job, hashes: dict[str, str], proof: Comparison | None, text: str | None) -> dict[str, Any]:
    """What growth.json holds."""
    return {
        "kind": "growth",
        "description": job.description,
        "architecture": job.parent.architecture,
        "parent": {
            "sha256": hashes,
            "sizes": _sizes(job.parent.sizes),
            "growth": _earlier(job.parent.folder / RECORD),
        },
        "sizes": _sizes(job.child),
        "operator": asdict(job.operator),
        "claims_preservation": not job.breaks,
        "breaks": job.breaks,
        "maps_sha256": maps_digest(job),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in job.layout.values()}),
        "verification": {"text": text, **_rounded(asdict(proof))} if proof else None,
        "versions": {
            "kinfolk": kinfolk.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _earlier(path: Path) -> Any:
    """What the parent's own record holds; None where it was not grown."""
    if not path.is_file():
        return None
    try:
        found = parse_json(path.read_bytes())
        json.dumps(found, allow_nan=False)
    except (OSError, ValueError) as error:
        raise KinfolkError(
            f"the record of how the parent was grown is damaged: {error}",
            where=str(path),
            fix="restore the file, or delete it",
        ) from error
    return found


def model_card(job: Job, lineage: dict[str, Any]) -> Card:
    """README.md of a grown checkpoint."""
    proof = lineage["verification"]
    claim = "preserves the function" if lineage["claims_preservation"] else f"is not exact: {'; '.join(job.breaks)}"
    measured = (
        f"Measured on {proof['text']}: largest difference of a logit {proof['max_abs_logit_difference']:.3g} (largest "
        f"logit {proof['max_abs_logit']:.3g}), KL {proof['kl']:.3g}, loss {proof['loss_before']:.6g} before and "
        f"{proof['loss_after']:.6g} after."
        if proof
        else "Not measured."
    )
    parent = tuple((name, f"`{digest}`") for name, digest in lineage["parent"]["sha256"].items())
    return Card(
        title="Grown by kinfolk",
        summary=f"Grown from a smaller checkpoint, and not trained since: {job.description}.",
        tags=("kinfolk", job.parent.architecture),
        facts=facts_of(job.parent.folder),
        results=Part(f"The operator {claim}. {measured}"),
        lineage=Part(tables=(Table(("file of the parent", "SHA-256"), parent),)),
        limits=("It is no better than its parent before it is trained on.",),
        usage=load_code(None),
        built=Part(
            f"`{RECORD}` says everything that is needed to do it again. The index maps have the SHA-256 "
            f"`{lineage['maps_sha256']}`."
        ),
    )


def write(job: Job, folder: Path, hashes: dict[str, str], proof: Comparison | None, text: str | None) -> None:
    """Write growth.json and README.md into a child's folder."""
    lineage = record(job, hashes, proof, text)
    files.write_json(folder / RECORD, lineage)
    files.write_text(folder / "README.md", render(model_card(job, lineage)))


def _sizes(sizes: Sizes) -> dict[str, Any]:
    others = {name: value for name, value in asdict(sizes).items() if name != "shape"}
    return sizes.shape.model_dump() | others


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
