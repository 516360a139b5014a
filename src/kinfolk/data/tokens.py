"""A corpus is tokenised once, to disk; after that a run only maps files into memory.

    data/
      data.json              counts, separator, vocabulary, and what all of it was made from
      tokenizer/             stock transformers tokenizer
      train.bin              token ids, little-endian uint16, or uint32 for a vocabulary above 65,536
      train_documents.bin    int64 pairs, one per document: where it starts in train.bin, and its UTF-8 bytes
      held_out.bin, held_out_documents.bin
      versions/NAME/         the same of each later version, but for the tokenizer; see `kinfolk.data.versions`

Every document begins with the separator: <|endoftext|> and then the document's tokens.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinfolk.data.corpus import Document, fingerprint, sources, split
from kinfolk.data.encoding import Part, encode_corpus
from kinfolk.data.loader import Tokens
from kinfolk.data.tokenizer import (
    check_vocabulary,
    document_encoder,
    prepare_tokenizer,
    separator_id,
    tokenizer_folder,
    vocabulary_size,
)
from kinfolk.errors import KinfolkError, in_short
from kinfolk.family.data import FIRST, LoadedTokenizer
from kinfolk.family.spec import Family
from kinfolk.files import new_directory, sha256, write_json
from kinfolk.json_text import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many bytes of text are done, and how many there are in all, if that is known."""

_FORMAT = 1
_HASHED_ON_OPEN = 256_000_000
_FIELDS = {"dtype": str, "vocab_size": int, "separator_id": int, "parts": dict, "made_from": dict, "files": dict}
_RENEW = "delete the folder; the next build tokenises the data again"


class DamagedStoreError(KinfolkError):
    """A store of tokens is not what was written."""

    def __init__(self, problem: str, store: Path) -> None:
        super().__init__(problem, where=str(store), fix=_RENEW)
        self.store = store


@dataclass(frozen=True)
class Documents:
    """Where documents lie in an array of tokens.

    Document i is tokens[starts[i]:starts[i + 1]] (the last one goes to the end): its separator, which is context and
    is not scored in bits per byte, and then the tokens of its text, which is bytes[i] bytes of UTF-8.
    """

    starts: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def total_bytes(self) -> int:
        """UTF-8 bytes of all texts together: the denominator of bits per byte."""
        return int(self.bytes.sum())


@dataclass(frozen=True)
class TokenStore:
    """A tokenised corpus: arrays are one-dimensional memory maps that cannot be written to."""

    folder: Path
    train: Tokens
    held_out: NDArray[np.unsignedinteger]
    train_documents: Documents
    held_out_documents: Documents
    separator_id: int
    vocab_size: int
    """Rows that an embedding needs at least."""
    digest: str = ""
    """SHA-256 of the hashes of all files: the same for the same tokens."""

    @property
    def tokenizer(self) -> Path:
        """Folder of the stock transformers tokenizer."""
        return self.folder / "tokenizer"


def prepare(
    family: Family, folder: Path, target: Path, progress: Progress | None = None, *, where: str = "family.yaml"
) -> TokenStore:
    """Tokenise the family's corpus to the folder `target`, or open what an earlier call left there.

    `folder` is that of the family file and `where` its name in errors. A store that is there is used if the family
    file's data and tokenizer and every file they name are as they were; otherwise it is a KinfolkError that says what
    has changed, because a run cannot go on on other data. A call that is killed leaves nothing that counts.
    KinfolkError too if there are fewer training tokens than one sequence, and for every fault of the data.
    """
    if target.exists():
        manifest = check_unchanged(target, _made_from(family, folder, where), where)
        check_vocabulary(family, manifest["vocab_size"], where)
        check_length(family, manifest["parts"]["train"]["tokens"], f"{where}: data.train")
        return open_store(target)
    with new_directory(target) as unfinished:
        _write(family, folder, unfinished, progress or (lambda *_: None), where)
    return open_store(target)


def check_unchanged(target: Path, made_from: dict[str, Any], where: str) -> dict[str, Any]:
    """What data.json says of the store in `target`; KinfolkError if it was made from something else."""
    manifest = _read_manifest(target)
    change = _change(manifest["made_from"], made_from)
    if change:
        raise KinfolkError(
            f"{change} since this run was begun, and a run cannot go on with other data",
            where=where,
            fix="put back what was there, or build into another run folder",
        )
    return manifest


def open_store(target: Path) -> TokenStore:
    """Open a store that `prepare` wrote.

    DamagedStoreError if a file is missing or not of the size it had, or if a file below 256 MB has other contents.
    """
    manifest = _read_manifest(target)
    try:
        return _open(target, manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # of a file that somebody has edited
        raise DamagedStoreError(f"data.json does not fit the files: {in_short(error)}", target) from error


def _open(target: Path, manifest: dict[str, Any]) -> TokenStore:
    for name, expected in manifest["files"].items():
        path = target / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["size"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {expected['size']}"
            raise DamagedStoreError(f"{name} {found}", target)
        if size < _HASHED_ON_OPEN and sha256(path) != expected["sha256"]:
            raise DamagedStoreError(f"{name} is not what was written", target)
    train, train_documents = _map(target, "train", manifest["dtype"])
    held_out, held_out_documents = _map(target, "held_out", manifest["dtype"])
    return TokenStore(
        folder=target,
        train=train,
        held_out=held_out,
        train_documents=train_documents,
        held_out_documents=held_out_documents,
        separator_id=manifest["separator_id"],
        vocab_size=manifest["vocab_size"],
        digest=_digest(manifest["files"]),
    )


def _write(family: Family, folder: Path, target: Path, progress: Progress, where: str) -> None:
    # Taken first: a file that changes while it is read then does not match later, which is noticed.
    made_from = _made_from(family, folder, where)
    tokenizer = prepare_tokenizer(family, folder, where, _training_texts(family, folder, progress, where))
    tokenizer.save_pretrained(target / "tokenizer")
    tokens = write_parts(split(family.data, folder, where), tokenizer, made_from, target, progress, where)
    check_length(family, tokens, f"{where}: data.train")


def write_parts(
    documents: Iterator[tuple[Document, bool]],
    tokenizer: "PreTrainedTokenizerBase",
    made_from: dict[str, Any],
    target: Path,
    progress: Progress,
    where: str,
) -> int:
    """Tokenise documents for training and held-out ones into the folder `target`; returns the training tokens."""
    entries, separator = vocabulary_size(tokenizer), separator_id(tokenizer)
    dtype = np.dtype("<u2" if entries <= 1 << 16 else "<u4")
    with Part(target, "train", dtype, separator) as train, Part(target, "held_out", dtype, separator) as held_out:
        encode_corpus(
            documents,
            partial(document_encoder, tokenizer),
            train,
            held_out,
            lambda done: progress("tokenising", done, None),
            f"{where}: tokenizer",
        )
    files = sorted(path for path in target.rglob("*") if path.is_file())
    manifest = {
        "format": _FORMAT,
        "dtype": dtype.str,
        "vocab_size": entries,
        "separator_id": separator,
        "parts": {part.name: part.counts() for part in (train, held_out)},
        "made_from": made_from,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "tokenizers", "transformers")},
        },
        "files": {
            path.relative_to(target).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
    }
    write_json(target / "data.json", manifest | {"sha256": _digest(manifest)})
    return train.tokens


def _training_texts(family: Family, folder: Path, progress: Progress, where: str) -> Iterator[str]:
    """The training documents' texts: a tokenizer must not have seen what is held out either."""
    done = 0
    for document, held_out in split(family.data, folder, where):
        if not held_out:
            yield document.text
            done += len(document.text.encode("utf-8"))
            progress("training the tokenizer", done, None)


def _made_from(family: Family, folder: Path, where: str) -> dict[str, Any]:
    """All that decides the tokens, as JSON: what the family file says, and the identity of everything it names."""
    made_from: dict[str, Any] = {
        "settings": {
            "data": family.data.model_dump(mode="json", exclude={"versions"}),
            "tokenizer": family.tokenizer.model_dump(mode="json"),
        },
        "fingerprints": fingerprints(family, folder, where),
    }
    if isinstance(family.tokenizer, LoadedTokenizer):
        local = tokenizer_folder(family.tokenizer.load, folder)
        if local:
            files = sorted(path for path in local.iterdir() if path.is_file() and path.suffix in (".json", ".txt"))
            made_from["fingerprints"]["tokenizer.load"] = {
                "files": {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
            }
    return made_from


def fingerprints(family: Family, folder: Path, where: str, version: str = FIRST) -> dict[str, Any]:
    """What a version's sources are now, by their place in the family file; KinfolkError for one that is missing."""
    return {
        place.removeprefix(f"{where}: "): fingerprint(source, folder, place)
        for place, source, _ in sources(family.data, where, version)
    }


def _change(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first difference between what a store was made from and what is there now, in words."""
    for setting in then["settings"]:
        if then["settings"][setting] != now["settings"][setting]:
            return f"{setting} in the family file has changed"
    for place, before in then["fingerprints"].items():
        after = now["fingerprints"].get(place, {})
        old_files, new_files = before.get("files", {}), after.get("files", {})
        for name in sorted(old_files.keys() | new_files.keys()):
            if name not in new_files:
                return f"{place}: {name} has gone"
            if old_files.get(name) != new_files[name]:
                return f"{place}: {name} has {'changed' if name in old_files else 'been added'}"
        if before != after:
            versions = (", ".join(f"{key} {value}" for key, value in side.items()) for side in (before, after))
            return f"{place}: {' has become '.join(versions)},"
    return None


def check_length(family: Family, tokens: int, where: str) -> None:
    """KinfolkError if so many training tokens are fewer than one sequence; `where` names their sources."""
    size = family.patch.size if family.patch else 1
    needed = size * (family.model.context_length + 1)
    if tokens < needed:
        raise KinfolkError(
            f"the training documents hold {tokens} tokens, fewer than the {needed} of one sequence"
            + (f" of patches of {size}" if size > 1 else ""),
            where=where,
            fix="add text, or lower model.context_length" + (" or patch.size" if size > 1 else ""),
        )


def _read_manifest(target: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((target / "data.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedStoreError(f"data.json cannot be read: {error}", target) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DamagedStoreError("the tokens are of another version of kinfolk", target)
    is_other = manifest.pop("sha256", None) not in (None, _digest(manifest))  # older stores have none
    if is_other or not all(isinstance(manifest.get(name), kind) for name, kind in _FIELDS.items()):
        raise DamagedStoreError("data.json is not what was written", target)
    return manifest


def _digest(value: Any) -> str:
    """SHA-256 of a value, however it is laid out as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _map(target: Path, part: str, dtype: str) -> tuple[NDArray[np.unsignedinteger], Documents]:
    tokens = _array(target / f"{part}.bin", np.dtype(dtype))
    documents = _array(target / f"{part}_documents.bin", np.dtype("<i8")).reshape(-1, 2)
    return tokens, Documents(starts=documents[:, 0], bytes=documents[:, 1])


def _array(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file as an array; an empty one, which cannot be mapped, as an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
