"""One checkpoint, measured on a run's held-out documents or on a text file."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk.data.tokens import open_store
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint, read_text, separator_of
from kinfolk.evaluate.loss import Score, encode_documents, held_out_documents, score
from kinfolk.files import UNFINISHED
from kinfolk.train.engine import single_engine


def members_of(model: str) -> list[str]:
    """The finished members of a run directory, small to large; anything else stands for itself."""
    members = Path(model) / "members"
    if not members.is_dir():
        return [model]
    found = [path for path in members.iterdir() if (path / "config.json").is_file() and path.suffix != UNFINISHED]
    if not found:
        raise KinfolkError("the run has no finished member yet", where=model, fix="go on with the build")
    return [str(path) for path in sorted(found, key=lambda path: (_weight_bytes(path), path.name))]


def _weight_bytes(member: Path) -> int:
    """Size of a member's weights, in one file or in several."""
    return sum(file.stat().st_size for file in member.glob("*.safetensors"))


def run_of(model: str) -> Path | None:
    """The run directory that a member lies in, if it does."""
    run = Path(model).resolve().parent.parent
    return run if (run / "data" / "data.json").is_file() else None


def measure(
    model: str,
    *,
    text: Path | None,
    run: Path | None,
    context_length: int | None = None,
    stride: int | None = None,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score a checkpoint on a text file, or on the held-out documents of a run (any tokenizer).

    Raises KinfolkError when there is neither, and for whatever is wrong with the checkpoint or the text.
    """
    if text is None and run is None:
        if not Path(model).exists():
            raise KinfolkError("there is no such folder", where=model, fix="give a run directory or a checkpoint")
        raise KinfolkError(
            f"{model} is not a member of a run, so it is not clear what to evaluate it on",
            fix="give --text FILE, or --run DIR for the held-out documents of a run",
        )
    texts: Iterable[str] | None = [read_text(text)] if text is not None else None
    engine = single_engine()
    network, tokenizer = load_checkpoint(model, engine.device, force)
    context = network.config.max_position_embeddings if context_length is None else context_length
    separator = separator_of(network, tokenizer)
    if texts is None:
        assert run is not None
        store = open_store(run / "data")
        written_with = AutoTokenizer.from_pretrained(store.tokenizer)
        if tokenizer.get_vocab() == written_with.get_vocab():
            documents = held_out_documents(store)
            return score(network, documents, separator, context, engine.device, stride, progress=progress)
        texts = (_text_of(written_with, ids) for ids, _ in held_out_documents(store))
    documents = encode_documents(tokenizer, texts)
    return score(network, documents, separator, context, engine.device, stride, progress=progress)


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: NDArray[Any]) -> str:
    """The text of a stored document, byte for byte."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
