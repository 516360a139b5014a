"""A finished member: a stock Hugging Face checkpoint with tokenizer and model card."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from kinfolk import files
from kinfolk.cores import usable_cores
from kinfolk.growth.made import copied, make_all
from kinfolk.growth.safetensors_writer import WeightsWriter
from kinfolk.train import checkpoint
from kinfolk.train.engine import Engine
from kinfolk.train.model import empty_model, parameters_of
from kinfolk.train.state_files import saved_tensors


def export_member(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    records: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Write the member atomically; returns the SHA-256 of its weights. Equal models give equal bytes.

    `records` are JSON files that go with it, by name.
    """
    with _new_member(target, tokenizer, card) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        for name, record in records.items():
            files.write_json(folder / name, record)
    return weights_digest(target)


def export_saved(
    target: Path, saved: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str
) -> str:
    """Write what `export_member` does, with weights from the training checkpoint `saved`, a few rows at a time.

    Of `model` only config and generation settings are used: its weights may lie anywhere, in any parts. What is written
    is the same as of a whole model, but for files of 5 GB in place of 50.
    """
    stored = {
        name.removeprefix("model."): copied(tensor)
        for name, tensor in saved_tensors(saved).items()
        if name.startswith("model.")
    }
    with _new_member(target, tokenizer, card) as folder:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        writer = WeightsWriter(folder, {name: tensor.layout for name, tensor in stored.items()})
        try:
            make_all(stored, writer.write, usable_cores())
            writer.close()
        finally:
            writer.abandon()
    return weights_digest(target)


def spread_member(member: Path, config: PreTrainedConfig, engine: Engine) -> PreTrainedModel:
    """The model of a member, in float32 and spread over the engine; every process calls this."""
    model = empty_model(config)
    engine.spread(model)
    checkpoint.read_tensors(member, parameters_of(model), engine)
    return model


@contextmanager
def _new_member(target: Path, tokenizer: PreTrainedTokenizerBase, card: str) -> Iterator[Path]:
    """A folder to be filled with a model, which appears as `target` with all that goes with it."""
    with files.new_directory(target) as folder, _without_progress_bars():
        yield folder
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, "utf-8")


def weights_digest(member: Path, progress: files.Progress | None = None) -> str:
    """SHA-256 of a member's weights, those of several files joined, as the ledger has it."""
    return "+".join(files.sha256_each(sorted(member.glob("model*.safetensors")), progress))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers draws one for writing a model; the build shows its own progress."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
