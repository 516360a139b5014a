"""Checkpoints, measured on a run's held-out documents or on text files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError
from kinfolk.evaluate import cache
from kinfolk.evaluate.load import load_checkpoint, load_config, separator_of
from kinfolk.evaluate.loss import DocumentLosses, Score, document_losses, summary
from kinfolk.evaluate.text import Text, run_of, text_for
from kinfolk.evaluate.windows import Document
from kinfolk.files import UNFINISHED
from kinfolk.train.engine import single_engine

__all__ = ["Loaded", "common_context", "measure", "members_of", "run_of", "scored"]

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many tokens are done, and of how many."""


def quietly(what: str, done: int, of: int) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, on the device that this process computes on."""

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    separator: int | None
    device: torch.device

    @property
    def longest(self) -> int:
        """Positions that the model was made for; KinfolkError where its config does not say."""
        return longest(self.model.config, self.path)

    def documents(self, text: Text) -> list[Document]:
        """The documents of a text in this model's tokens."""
        return list(text.documents(self.tokenizer))

    def losses(
        self, text: Text, context_length: int | None, stride: int | None, progress: Progress = quietly
    ) -> DocumentLosses:
        """The loss of every token; in windows of what the model was made for, unless told otherwise."""
        documents = self.documents(text)
        total = sum(len(ids) for ids, _ in documents)
        return document_losses(
            self.model,
            documents,
            self.separator,
            self.longest if context_length is None else context_length,
            self.device,
            stride,
            progress=lambda done: progress(f"evaluating {self.path}", done, total),
        )


def load(path: str, force: bool = False) -> Loaded:
    """Load a checkpoint; KinfolkError for whatever is wrong with it."""
    engine = single_engine()
    model, tokenizer = load_checkpoint(path, engine.device, force)
    return Loaded(path, model, tokenizer, separator_of(model, tokenizer), engine.device)


def longest(config: PreTrainedConfig, where: str) -> int:
    """Positions that a model was made for; KinfolkError where its config does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise KinfolkError("the config names no largest context", where=where, fix="give --context-length")
    return positions


def common_context(paths: list[str]) -> int:
    """The shortest of the contexts that checkpoints were made for, from their configs."""
    return min(longest(load_config(path), path) for path in paths)


def members_of(model: str) -> list[str]:
    """The finished members of a run directory, small to large; anything else stands for itself."""
    members = Path(model) / "members"
    if not members.is_dir():
        return [model]
    found = [path for path in members.iterdir() if (path / "config.json").is_file() and path.suffix != UNFINISHED]
    if not found:
        raise KinfolkError("the run has no finished member yet", where=model, fix="go on with the build")
    return [str(path) for path in sorted(found, key=lambda path: (weight_bytes(str(path)), path.name))]


def weight_bytes(member: str) -> int:
    """Size of a member's weights, in one file or in several."""
    kinds = ("*.safetensors", "*.gguf")
    return sum(file.stat().st_size for kind in kinds for file in Path(member).glob(kind))


def measure(
    model: str,
    *,
    text: Path | None,
    run: Path | None,
    context_length: int | None = None,
    stride: int | None = None,
    force: bool = False,
) -> Score:
    """Score a checkpoint on a text file, or on the held-out documents of a run (any tokenizer).

    Raises KinfolkError when there is neither, and for whatever is wrong with the checkpoint or the text.
    """
    what = text_for([model], [] if text is None else [text], run)
    return summary(load(model, force).losses(what, context_length, stride))


def scored(
    model: str,
    text: Text,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    force: bool = False,
    progress: Progress = quietly,
) -> tuple[dict[str, Any], bool]:
    """The score of a checkpoint as plain data, and whether it was known from before."""

    def compute() -> dict[str, Any]:
        return summary(load(model, force).losses(text, context_length, stride, progress)).to_dict()

    settings = {"text": text.digest(), "context_length": context_length, "stride": stride, "force": force}
    return cache.remembered("score", [cache.checkpoint_digest(model)], settings, compute)
