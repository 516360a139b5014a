"""Versions of a family's data: ever newer text, tokenised by the one tokenizer of the first.

A later version is a store of its own, in data/versions/NAME, which lacks only the tokenizer. It can be added to a run
at any time and changes nothing of what is there. Held out stays held out: with a share the hash of a text decides,
which is the same in every version; with held-out sources each version is compared with them.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kinfolk.data.corpus import Document, split
from kinfolk.data.joined import JoinedTokens
from kinfolk.data.tokens import (
    Documents,
    Progress,
    TokenStore,
    check_length,
    check_unchanged,
    fingerprints,
    open_store,
    prepare,
    write_parts,
)
from kinfolk.family.data import FIRST, Data, Version
from kinfolk.family.spec import Family
from kinfolk.files import UNFINISHED, new_directory, sha256

Stores = Mapping[str, TokenStore]
"""The store of each version by its name, that of the first among them."""


def prepare_versions(
    family: Family, folder: Path, target: Path, progress: Progress | None = None, *, where: str = "family.yaml"
) -> dict[str, TokenStore]:
    """Tokenise all versions of the family's data as far as that was not done before, as `prepare` does the first.

    The sources of every version are looked for before the first one is read. KinfolkError for every fault of the data.
    """
    from transformers import AutoTokenizer

    found = {version.name: fingerprints(family, folder, where, version.name) for version in family.data.versions}
    first = prepare(family, folder, target, progress, where=where)
    for leftover in (target / "versions").glob(f"*{UNFINISHED}"):
        shutil.rmtree(leftover)
    for index, version in enumerate(family.data.versions):
        place, store = f"{where}: data.versions[{index}]", _folder(target, version.name)
        made_from = _made_from(version, first, found[version.name])
        if store.exists():
            manifest = check_unchanged(store, made_from, where)
            check_length(family, manifest["parts"]["train"]["tokens"], f"{place}.train")
            continue
        documents = _documents(family.data, folder, where, version.name)
        tokenizer = AutoTokenizer.from_pretrained(first.tokenizer, trust_remote_code=False)
        told = _named(progress, version.name)
        with new_directory(store) as unfinished:
            tokens = write_parts(documents, tokenizer, made_from, unfinished, told, where)
            check_length(family, tokens, f"{place}.train")
    return open_versions(family.data, target)


def open_versions(data: Data, target: Path) -> dict[str, TokenStore]:
    """Open the stores that `prepare_versions` wrote. All have the tokenizer of the first."""
    first = open_store(target)
    later = {each.name: replace(open_store(_folder(target, each.name)), folder=target) for each in data.versions}
    return {FIRST: first, **later}


def joined(stores: Stores, versions: Sequence[str]) -> TokenStore:
    """What a stage reads: the training tokens of these versions, and the held-out part of the first.

    So the held-out losses of all stages and members can be compared, whatever they were trained on.
    """
    parts = [stores[name] for name in versions]
    offsets = np.cumsum([0, *(len(part.train) for part in parts[:-1])])
    starts = [part.train_documents.starts + offset for part, offset in zip(parts, offsets, strict=True)]
    documents = Documents(np.concatenate(starts), np.concatenate([part.train_documents.bytes for part in parts]))
    arrays = [part.train for part in parts if not isinstance(part.train, JoinedTokens)]
    train = arrays[0] if len(arrays) == 1 else JoinedTokens(arrays)
    return replace(stores[FIRST], train=train, train_documents=documents)


def _folder(target: Path, version: str) -> Path:
    return target / "versions" / version


def _documents(data: Data, folder: Path, where: str, version: str) -> Iterator[tuple[Document, bool]]:
    """The documents of a later version; held-out sources belong to the first, but none of theirs may be here."""
    for document, held_out in split(data, folder, where, version):
        if not (held_out and data.held_out.sources):
            yield document, held_out


def _made_from(version: Version, first: TokenStore, prints: dict[str, Any]) -> dict[str, Any]:
    settings = {
        f"version {version.name}": version.model_dump(mode="json", include={"train"}),
        "tokenizer": sha256(first.tokenizer / "tokenizer.json"),
    }
    return {"settings": settings, "fingerprints": prints}


def _named(progress: Progress | None, version: str) -> Progress:
    """The progress of a version, called by its name."""
    if progress is None:
        return lambda *_: None
    return lambda what, done, total: progress(f"{what} {version}", done, total)
