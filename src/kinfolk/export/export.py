"""A checkpoint written in other formats, each read back and measured beside the original on the same text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

import kinfolk
from kinfolk import files
from kinfolk.card.card import Card, Part, Result, Table, load_code, render
from kinfolk.card.metadata import facts_of
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import ratio_interval
from kinfolk.evaluate.load import load_config
from kinfolk.evaluate.loss import DocumentLosses, summary
from kinfolk.evaluate.measure import load
from kinfolk.evaluate.text import Text
from kinfolk.export import gguf, quantise
from kinfolk.export.formats import default_target
from kinfolk.train.model import check_token_ready, is_token_ready

RECORD = "export.json"
"""File that says of a folder what it was exported from, and what that cost."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cost:
    """A format beside the original: both read the same text in the same windows."""

    weight_bytes: int
    original_bytes: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    loss_difference: float
    """Of the format minus the original, paired by token."""
    loss_low: float | None
    loss_high: float | None
    """The 90 % interval over documents; None for fewer than five."""
    bits_per_byte_difference: float
    bits_per_byte_low: float | None
    bits_per_byte_high: float | None
    tokens: int
    bytes: int
    documents: int
    context_length: int
    stride: int


@dataclass(frozen=True)
class Exported:
    """One export that was written."""

    model: str
    format: str
    folder: Path
    cost: Cost
    stored_as_f16: int
    """Matrices of a GGUF whose rows are no whole blocks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Job:
    model: Path
    format: str
    target: Path
    plan: Any
    """What looking at the checkpoint has found out, by format."""


def export_models(
    models: Sequence[Path],
    formats: Sequence[str],
    output: Path | None,
    text: Text | Callable[[Path], Text],
    force: bool,
    progress: Progress,
) -> list[Exported]:
    """Write every model in every format, and measure what each costs on `text`.

    `output` is the folder of a single export; otherwise each goes to its default. Everything that can be refused is
    refused, with KinfolkError, before anything is written.
    """
    if output is not None and len(models) * len(formats) > 1:
        raise KinfolkError(
            "--output is the folder of one export", fix="give one model and one --format, or no --output"
        )
    jobs = [_planned(model, each, output or default_target(model, each), force) for model in models for each in formats]
    texts = {model: text if isinstance(text, Text) else text(model) for model in models}
    done = []
    for model in models:
        original = load(str(model), force).losses(texts[model], None, None, progress)
        done += [_carry_out(job, original, texts[model], force, progress) for job in jobs if job.model == model]
    return done


def _planned(model: Path, form: str, target: Path, force: bool) -> _Job:
    """Refuse what cannot be done: the checkpoint, the format of it, the place."""
    if not model.is_dir():
        raise KinfolkError("there is no such folder", where=str(model), fix="give a run directory or a checkpoint")
    check_token_ready(is_token_ready(load_config(model)), str(model), force)
    if target.exists() and not (target / RECORD).is_file():
        raise KinfolkError("there is something else here", where=str(target), fix="choose another --output")
    if target.resolve() == model.resolve():
        raise KinfolkError("this is the checkpoint itself", where=str(target), fix="choose another --output")
    is_gguf = form.startswith("gguf-")
    plan = gguf.plan_gguf(model) if is_gguf else quantise.plan_quantised(model, cast(quantise.Bits, form))
    return _Job(model, form, target, plan)


def _carry_out(job: _Job, original: DocumentLosses, text: Text, force: bool, progress: Progress) -> Exported:
    """Write, read back, measure; the folder appears under its name only with all of that done."""
    name = job.model.resolve().name
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with files.new_directory(job.target) as folder:
        kept = _write(job, folder, name, progress)
        found = load(str(folder), force).losses(text, original.context_length, original.stride, progress)
        cost = compare(original, found, weight_bytes(folder), weight_bytes(job.model))
        record = {
            "kind": "export",
            "format": job.format,
            "source": {"name": name, "sha256": _hashes(job.model)},
            "sha256": _hashes(folder),
            "stored_as_f16": kept,
            "cost": asdict(cost),
            "text_sha256": text.digest(),
            "versions": {
                "kinfolk": kinfolk.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                **_package(job.format),
            },
        }
        files.write_json(folder / RECORD, record)
        files.write_text(folder / "README.md", render(_card(job, name, folder, record, cost)))
    return Exported(str(job.model), job.format, job.target, cost, kept)


def _write(job: _Job, folder: Path, name: str, progress: Progress) -> int:
    if job.format.startswith("gguf-"):
        precision = cast(gguf.Precision, job.format.removeprefix("gguf-"))

        def written(done: int, of: int) -> None:
            progress(f"writing {name} as {job.format}", done, of)

        kept = gguf.write_gguf(job.plan, folder / f"{name}-{precision.upper()}.gguf", precision, written)
        gguf.copy_config(job.model, folder)
        return kept
    progress(f"writing {name} as {job.format}", 0, 1)
    quantise.write_quantised(job.model, folder, cast(quantise.Bits, job.format), job.plan)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(job.model, trust_remote_code=False, local_files_only=True).save_pretrained(folder)
    return 0


def compare(original: DocumentLosses, found: DocumentLosses, size: int, original_size: int) -> Cost:
    """What a format costs: differences over the same tokens, with their intervals over documents.

    KinfolkError where both did not score the same tokens, which a tokenizer of another kind would do.
    """
    same = original.sizes == found.sizes and all(
        len(nats) == len(found.nats.get(document, ())) for document, nats in original.nats.items()
    )
    if not same:
        raise KinfolkError(
            "the exported tokenizer splits the text in another way than the original",
            fix="report this with the tokenizer.json; the export was not written",
        )
    differences = np.array([found.nats[each].sum() - nats.sum() for each, nats in original.nats.items()])
    tokens = np.array([len(nats) for nats in original.nats.values()])
    sizes = np.array([original.sizes[document] for document in original.nats])
    now = summary(found)
    loss_low, loss_high = ratio_interval(differences, tokens)
    low, high = ratio_interval(differences / math.log(2), sizes)
    return Cost(
        weight_bytes=size,
        original_bytes=original_size,
        loss=now.loss,
        bits_per_byte=now.bits_per_byte,
        loss_difference=float(differences.sum() / tokens.sum()),
        loss_low=loss_low,
        loss_high=loss_high,
        bits_per_byte_difference=float(differences.sum() / math.log(2) / sizes.sum()),
        bits_per_byte_low=low,
        bits_per_byte_high=high,
        tokens=now.tokens,
        bytes=now.bytes,
        documents=now.documents,
        context_length=now.context_length,
        stride=now.stride,
    )


def weight_bytes(folder: Path) -> int:
    """Size of the files of weights."""
    return sum(path.stat().st_size for path in _weights(folder))


def _weights(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.safetensors"), *folder.glob("*.gguf")))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in (folder / "config.json", *_weights(folder))}


def _package(form: str) -> dict[str, str]:
    from importlib.metadata import version

    name = "gguf" if form.startswith("gguf-") else {"int8": "torchao", "int4": "compressed-tensors"}[form]
    return {name: version(name)}


def _card(job: _Job, name: str, folder: Path, record: dict[str, Any], cost: Cost) -> Card:
    is_gguf = job.format.startswith("gguf-")
    settings: dict[str, Any] = {"context_length": cost.context_length, "stride": cost.stride}
    text = f"text with SHA-256 {record['text_sha256'][:12]}"
    difference = "-"
    if cost.bits_per_byte_low is not None and cost.bits_per_byte_high is not None:
        difference = f"{cost.bits_per_byte_low:+.5f} to {cost.bits_per_byte_high:+.5f}"
    row = (
        f"{cost.weight_bytes:,} of {cost.original_bytes:,}",
        f"{cost.loss:.4f} ({cost.loss_difference:+.5f})",
        f"{cost.bits_per_byte:.4f}",
        f"{cost.bits_per_byte_difference:+.5f}",
        difference,
    )
    headings = ("bytes", "loss (nats per token)", "bits per byte", "difference to the original", "90 % interval")
    limits = ["All limits of the model that it was exported from hold for it too."]
    if record["stored_as_f16"]:
        limits.append(f"{record['stored_as_f16']} matrices have rows that are no whole blocks, and are stored as f16.")
    options = ""
    if is_gguf:
        options = f', gguf_file="{_weights(folder)[0].name}"'
    software = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return Card(
        title=f"{name}, {job.format}",
        summary=f"{name} in the format *{job.format}*"
        + (", for llama.cpp and whatever reads GGUF." if is_gguf else ", for transformers."),
        tags=("kinfolk", "gguf" if is_gguf else job.format),
        library="gguf" if is_gguf else "transformers",
        facts=facts_of(job.model),
        relation="quantized",
        measured=(
            Result(text, "Held-out text", "loss", "Loss, nats per token", cost.loss, settings),
            Result(text, "Held-out text", "bits_per_byte", "Bits per byte", cost.bits_per_byte, settings),
        ),
        results=Part(
            f"On {cost.documents:,} documents of {cost.bytes:,} bytes, beside the original on the same tokens:",
            (Table(headings, (row,)),),
        ),
        lineage=Part(
            tables=(
                Table(
                    ("file of the original", "SHA-256"),
                    tuple((file, f"`{digest}`") for file, digest in record["source"]["sha256"].items()),
                ),
            )
        ),
        limits=tuple(limits),
        usage=load_code(None, options=options),
        built=Part(f"`kinfolk export {name} --format {job.format}` with {software}."),
    )
