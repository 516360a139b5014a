"""A checkpoint written in other formats, each read back and measured beside the original on the same text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers

import kinfolk
from kinfolk import files
from kinfolk.card.card import render
from kinfolk.card.metadata import facts_of
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_config
from kinfolk.evaluate.loss import DocumentLosses
from kinfolk.evaluate.measure import load
from kinfolk.evaluate.text import Text
from kinfolk.export import gguf, quantise
from kinfolk.export.card import export_card
from kinfolk.export.cost import Cost, compare, weight_bytes, weights_of
from kinfolk.export.formats import default_target
from kinfolk.train.model import check_token_ready, is_token_ready

RECORD = "export.json"
"""File that says of a folder what it was exported from, and what that cost."""

Progress = Callable[[str, int, int], None]


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
        record: dict[str, Any] = {
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
        files.write_text(folder / "README.md", render(export_card(name, facts_of(job.model), record, cost)))
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


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in (folder / "config.json", *weights_of(folder))}


def _package(form: str) -> dict[str, str]:
    from importlib.metadata import version

    name = "gguf" if form.startswith("gguf-") else {"int8": "torchao", "int4": "compressed-tensors"}[form]
    return {name: version(name)}
