"""What a training on demonstrations starts from: checkpoints with one tokenizer, and files of demonstrations."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk import files
from kinfolk.checkpoint_folder import config_content, no_weights
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.train.monitor import View
from kinfolk.transfer.demonstrations import Demonstrations, TooLong, read_demonstrations, repeated, split_by_hash
from kinfolk.transfer.template import ChatTemplate, template_of


class TransferView(View, Protocol):
    """A view that also watches the preparation."""

    def counted(self, what: str, done: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class Data:
    """Where demonstrations are, and how they are read."""

    path: Path
    held_out: Path | None = None
    held_out_share: float = 0.05
    """Of `path`, where no file is given to hold out."""
    template: Path | None = None
    longest: int | None = None
    """Tokens; by default the context of the models."""
    too_long: TooLong = "refuse"

    def document(self) -> dict[str, Any]:
        """For a run's record: names and hashes, so that a changed file is noticed."""
        if not 0 < self.held_out_share < 1:
            raise KinfolkError(
                f"a share of {self.held_out_share:g}", where="--held-out-share", fix="give a share between 0 and 1"
            )
        if self.longest is not None and self.longest < 2:
            raise KinfolkError(f"{self.longest} tokens", where="--max-length", fix="allow 2 or more")
        return {
            "data": file_document(self.path),
            "held_out": file_document(self.held_out) if self.held_out else {"share": self.held_out_share},
            "template": file_document(self.template) if self.template else None,
            "longest": self.longest,
            "too_long": self.too_long,
        }


def file_document(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a file; KinfolkError where it cannot be read."""
    try:
        return {"name": path.name, "sha256": files.sha256(path)}
    except OSError as error:
        raise KinfolkError(
            f"the file cannot be read: {error.strerror}", where=str(path), fix="give a readable file"
        ) from error


def checkpoint_document(folder: Path, view: TransferView) -> dict[str, Any]:
    """Name and hashes of a checkpoint's config and weights; KinfolkError for a folder that holds none."""
    config_content(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise no_weights(folder)
    total, done = sum(path.stat().st_size for path in weights), 0
    hashes = {"config.json": files.sha256(folder / "config.json")}
    for path in weights:
        hashes[path.name] = files.sha256(path)
        done += path.stat().st_size
        view.counted(f"hashing {folder.name} (MB)", done // 10**6, total // 10**6)
    return {"name": folder.resolve().name, "sha256": hashes}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what makes two tokenizers one to a pair of models: every entry with its id."""
    entries = sorted((number, entry) for entry, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def load_member(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model on the CPU in float32, and its tokenizer; KinfolkError for whatever keeps either from being loaded."""
    return load_checkpoint(folder, "cpu")


def check_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, where: Path, others: Iterable[tuple[Path, PreTrainedTokenizerBase]]
) -> None:
    """Refuse models whose token ids do not mean the same."""
    vocabulary = tokenizer.get_vocab()
    for other, theirs in others:
        unlike = vocabulary.items() ^ theirs.get_vocab().items()
        if unlike:
            raise KinfolkError(
                f"its tokenizer is not that of {where}: {len({entry for entry, _ in unlike})} entries differ",
                where=str(other),
                fix="give members of one family, or a value network with the base's tokenizer",
            )


def context_of(model: PreTrainedModel) -> int:
    """Tokens of the longest text that a model was made for; no limit where its config says none."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) else 2**31


def read_material(
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    models: Iterable[PreTrainedModel],
    where: Path,
    view: TransferView,
) -> tuple[Demonstrations, Demonstrations, ChatTemplate]:
    """Demonstrations to train on, those that are held out, and the template that they were rendered with.

    `where` is the tokenizer's folder, for messages.
    """
    template = template_of(tokenizer, str(where), data.template)
    context = min(context_of(model) for model in models)
    if data.longest is not None and data.longest > context:
        raise KinfolkError(
            f"{data.longest} tokens are more than the models' context of {context}",
            where="--max-length",
            fix=f"use {context} or less",
        )
    longest = data.longest or context

    def read(path: Path) -> Demonstrations:
        report: Callable[[int], None] = lambda done: view.counted(f"reading {path.name}", done, None)  # noqa: E731
        found = read_demonstrations(path, template, tokenizer, longest, data.too_long, report)
        if found.cut:
            view.say(
                f"warning: {path.name}: {found.cut:,} demonstrations were cut to {longest:,} tokens; "
                f"{found.left_out:,} of them had no response left and are not used"
            )
        return found

    train = read(data.path)
    if data.held_out is None:
        return *split_by_hash(train, data.held_out_share, str(data.path)), template
    held_out = read(data.held_out)
    twice = repeated(held_out, train)
    if twice:
        view.say(f"warning: {twice:,} of {len(held_out):,} held-out demonstrations are in {data.path.name} too")
    return train, held_out, template
