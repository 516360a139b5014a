"""A finished member: a stock Hugging Face checkpoint with tokenizer and model card."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from kinfolk import files


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
    with files.new_directory(target) as folder, _without_progress_bars():
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, "utf-8")
        for name, record in records.items():
            files.write_json(folder / name, record)
    return weights_digest(target)


def weights_digest(member: Path) -> str:
    """SHA-256 of a member's weights, those of several files joined, as the ledger has it."""
    return "+".join(files.sha256(path) for path in sorted(member.glob("model*.safetensors")))


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
