"""The tokenizer of a family: trained on its own text, or loaded; always a stock transformers tokenizer on disk.

transformers and tokenizers are imported where they are used: they cost seconds, and reading a plan needs neither.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kinfolk.data.formats import expand_home
from kinfolk.errors import KinfolkError
from kinfolk.family.data import LoadedTokenizer, TrainedTokenizer
from kinfolk.family.load import LoadedFamily
from kinfolk.family.spec import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"
"""The only special token of a trained tokenizer: it begins every document, ends every text and pads every batch."""

TRAINING_BYTES = 50_000_000
"""A tokenizer is trained on at most this much text, the first of the corpus."""


def train_tokenizer(texts: Iterator[str], vocab_size: int, where: str = "tokenizer") -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE with exactly `vocab_size` entries: `SEPARATOR`, the 256 bytes, and merges.

    Every text can be encoded and comes back unchanged, and the same texts give the same tokenizer. KinfolkError with
    the size that can be reached if the texts are too small for so many entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer=trainer)
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        raise KinfolkError(
            f"the training text is too small for a tokenizer of {vocab_size} entries: it gives {reached}",
            where=f"{where}.vocab_size",
            fix=f"use {reached} or less, or more text",
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        clean_up_tokenization_spaces=False,  # it would take out spaces before punctuation: decoding must be lossless
    )


def load_tokenizer(name_or_folder: str, folder: Path, where: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder (relative to `folder`) or by its name on the Hugging Face hub.

    KinfolkError if it cannot be loaded, has no token to put between documents, or is not of the tokenizers library.
    Code that comes with a tokenizer is never run.
    """
    from transformers import AutoTokenizer

    local = tokenizer_folder(name_or_folder, folder)
    if local is None and name_or_folder.startswith((".", "/", "~")):
        raise KinfolkError(
            f"there is no folder {name_or_folder!r}",
            where=where,
            fix="a relative path starts from the family file's folder",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(local or name_or_folder), trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and its network client's errors
        raise KinfolkError(
            f"cannot load the tokenizer {name_or_folder!r}: {error}",
            where=where,
            fix="name a folder that save_pretrained wrote, or with a network a tokenizer of the hub",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise KinfolkError(
            f"{name_or_folder!r} is a tokenizer in Python code, too slow for a corpus",
            where=where,
            fix="use one that has a tokenizer.json",
        )
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise KinfolkError(
            f"the tokenizer {name_or_folder!r} has neither an eos nor a bos token to put between documents",
            where=where,
            fix="name its eos_token in its tokenizer_config.json",
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def tokenizer_folder(name_or_folder: str, folder: Path) -> Path | None:
    """The local folder that a tokenizer is loaded from, or None if the name means one of the hub."""
    local = folder / expand_home(name_or_folder)
    return local if local.is_dir() else None


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that begins every document: eos, or bos where there is no eos."""
    identifier = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if identifier is None:
        raise KinfolkError("the tokenizer has neither an eos nor a bos token", where="tokenizer")
    return int(cast(int, identifier))


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The rows that an embedding needs at least: one more than the largest id, which need not be `len(tokenizer)`."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def document_encoder(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """A copy of the `tokenizers.Tokenizer` inside, set up for the text of documents.

    A document that contains the characters of a special token ("<|endoftext|>" in an article on tokenizers) must not
    end there, so special tokens are read as ordinary text. Nothing is cut off or padded.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(cast(Any, tokenizer).backend_tokenizer.to_str())
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def prepare_tokenizer(family: Family, folder: Path, where: str, texts: Iterator[str]) -> "PreTrainedTokenizerBase":
    """The family's tokenizer, trained on `texts` or loaded. `folder` is that of the family file, `where` its name.

    KinfolkError if it has more entries than `model.vocab_size` says that the models have rows.
    """
    tokenizer: PreTrainedTokenizerBase
    if isinstance(family.tokenizer, TrainedTokenizer):
        check_vocabulary(family, family.tokenizer.vocab_size, where)  # before the minutes that training may take
        tokenizer = train_tokenizer(texts, family.tokenizer.vocab_size, f"{where}: tokenizer")
    else:
        tokenizer = load_tokenizer(family.tokenizer.load, folder, f"{where}: tokenizer.load")
        check_vocabulary(family, vocabulary_size(tokenizer), where)
    return tokenizer


def check_vocabulary(family: Family, entries: int, where: str) -> None:
    """KinfolkError if the models have fewer rows than the tokenizer has `entries`; more are padding."""
    rows = family.model.vocab_size
    if rows is not None and rows < entries:
        raise KinfolkError(
            f"{rows} rows are too few for the tokenizer's {entries} entries",
            where=f"{where}: model.vocab_size",
            fix=f"use {entries} or more, or leave it out",
        )


def _first_bytes(texts: Iterator[str], limit: int) -> Iterator[str]:
    """The texts up to `limit` bytes of UTF-8; the last one is cut off."""
    for text in texts:
        raw = text.encode("utf-8")
        if len(raw) >= limit:
            yield raw[:limit].decode("utf-8", errors="ignore")
            return
        limit -= len(raw)
        yield text


def with_vocabulary(loaded: LoadedFamily) -> Family:
    """The family with `model.vocab_size` settled; a loaded tokenizer is read for it."""
    family = loaded.family
    rows = family.embedding_rows
    if isinstance(family.tokenizer, LoadedTokenizer) and family.model.vocab_size is None:
        where = f"{loaded.origin}: tokenizer.load"
        rows = vocabulary_size(load_tokenizer(family.tokenizer.load, loaded.folder, where))
    return family.model_copy(update={"model": family.model.model_copy(update={"vocab_size": rows})})
