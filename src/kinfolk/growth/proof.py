"""The proof of a growth between two checkpoint folders: both are run from their files, on a text, and compared."""

from importlib.resources import files as package_files
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from kinfolk.errors import KinfolkError
from kinfolk.growth.checkpoint import Job, Parent, Progress
from kinfolk.growth.compare import ClaimError, Comparison, ResidualMap, compare
from kinfolk.growth.safetensors import Weights
from kinfolk.growth.streamed import streamed_model
from kinfolk.growth.verify import tolerance_of

WINDOW = 128
WINDOWS = 4
"""Tokens that are compared at most: enough for every layer to be seen, few enough for logits of any vocabulary."""

_SEED = 0


def prove(
    job: Job,
    folder: Path,
    dtype: torch.dtype,
    text: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Comparison, str]:
    """Compare a child in `folder` with its parent, and say on which tokens.

    Raises ClaimError where the operator claims to preserve the function and the measurement does not bear it out.
    """
    tokens, origin = tokens_for(job.parent, text)
    with Weights(folder) as weights:
        child = streamed_model(job.config, weights, dtype)
        parent = streamed_model(job.parent.config, job.parent.weights, dtype)
        stored = [entry.dtype for entry in (*weights.values(), *job.parent.weights.values())]
        residual = None
        if not job.breaks:
            residual = ResidualMap.of(job.parent.architecture, job.parent.sizes, job.child, job.operator)
        # The hidden states of the parent go beside the target: a folder of temporary files may be memory.
        comparison = compare(
            parent, child, tokens, dtype, tolerance_of(dtype, stored), residual, folder.parent, progress
        )
    if not job.breaks and not comparison.within_tolerance:
        raise ClaimError(comparison, job.description)
    return comparison, origin


def tokens_for(parent: Parent, text: Path | None) -> tuple[Tensor, str]:
    """(windows, time) of token ids, and what they are: those of a text, or drawn where there is no tokenizer."""
    window = min(WINDOW, getattr(parent.config, "max_position_embeddings", WINDOW))
    vocabulary = parent.sizes.vocab_size or 1
    ids = _encoded(parent, text, vocabulary)
    if ids is None:
        generator = torch.Generator().manual_seed(_SEED)
        drawn = torch.randint(vocabulary, (WINDOWS, window), generator=generator)
        return drawn, f"{drawn.numel()} tokens drawn with seed {_SEED}"
    if len(ids) < window:
        return torch.tensor([ids]), f"{len(ids)} tokens of {text or 'the built-in text'}"
    windows = min(WINDOWS, len(ids) // window)
    tokens = torch.tensor(ids[: windows * window]).view(windows, window)
    return tokens, f"{tokens.numel()} tokens of {text.name if text else 'the built-in text'}"


def _encoded(parent: Parent, text: Path | None, vocabulary: int) -> list[int] | None:
    """Token ids of a text; None where nothing was given and the checkpoint has no tokenizer for the built-in one."""
    if text is None:
        content = (package_files("kinfolk.growth") / "verification.txt").read_text("utf-8")
    else:
        try:
            content = text.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KinfolkError(f"cannot be read as UTF-8: {error}", where=str(text), fix="give a text file") from error
    has_one = any(parent.folder.glob("tokenizer*")) or any(parent.folder.glob("vocab.*"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(parent.folder, trust_remote_code=False, local_files_only=True)
        ids: list[int] = tokenizer(content, verbose=False)["input_ids"] if has_one else []
    except Exception as error:
        if text is None:
            return None
        raise KinfolkError(
            f"the text needs a tokenizer, and the source's cannot be loaded: {error}",
            where=str(parent.folder),
            fix="copy the tokenizer there, or leave --text out",
        ) from error
    fits = len(ids) > 1 and max(ids) < vocabulary
    if text is not None and not fits:
        raise KinfolkError(
            "the text gives fewer than two tokens of the model's vocabulary",
            where=str(text),
            fix="give a longer text, and a source with its own tokenizer",
        )
    return ids if fits else None
