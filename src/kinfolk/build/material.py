"""What a member was trained on, for its card: sources with sizes and hashes, without any path of the machine."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinfolk.card.card import Part, Table
from kinfolk.family.data import FIRST, BuiltinSource, HuggingFaceSource, Source
from kinfolk.family.spec import Family
from kinfolk.json_text import parse_json


def hub_datasets(family: Family, versions: list[str]) -> tuple[str, ...]:
    """Names on the hub of the data sets that versions of the data are made of."""
    found = [source for version in versions for source in family.data.sources_of(version)]
    return tuple(dict.fromkeys(each.huggingface for each in found if isinstance(each, HuggingFaceSource)))


def material_part(family: Family, versions: list[str], data: Path, counts: Mapping[str, int]) -> Part:
    """Sources, counts and hashes of the versions that a member has read; `data` is the run's folder of them."""
    names = [_name(source) for version in versions for source in family.data.sources_of(version)]
    text = (
        f"Sources: {', '.join(names)}. {counts['train_documents']:,} documents, {counts['train_bytes']:,} bytes, "
        f"{counts['train_tokens']:,} tokens; held out by document."
    )
    sources: list[tuple[str, ...]] = []
    stored: list[tuple[str, ...]] = []
    for version in versions:
        folder = data if version == FIRST else data / "versions" / version
        manifest = parse_json((folder / "data.json").read_bytes())
        prints = manifest["made_from"]["fingerprints"]
        sources += _rows(family, version, prints)
        stored += _stored(version, manifest)
    return Part(
        text,
        (
            Table(("source", "use", "what", "bytes", "SHA-256"), tuple(sources)),
            Table(("as tokens", "documents", "tokens", "SHA-256"), tuple(stored)),
        ),
    )


def _rows(family: Family, version: str, prints: Mapping[str, Any]) -> list[tuple[str, ...]]:
    own = family.data.sources_of(version)
    index = [each.name for each in family.data.versions].index(version) if version != FIRST else None
    field = "data" if index is None else f"data.versions[{index}]"
    use = "training" if index is None else f"training, version {version}"
    rows = [_row(source, use, prints.get(f"{field}.train[{place}]", {})) for place, source in enumerate(own)]
    if index is None:
        held_out = family.data.held_out.sources
        rows += [
            _row(source, "held out", prints.get(f"data.held_out.sources[{place}]", {}))
            for place, source in enumerate(held_out)
        ]
    return rows


def _row(source: Source, use: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    if "files" in found:
        digests = [each["sha256"] for each in found["files"].values()]
        size = sum(each["size"] for each in found["files"].values())
        what = "1 file" if len(digests) == 1 else f"{len(digests):,} files"
        return (_name(source), use, what, f"{size:,}", f"`{digest_of(digests)}`")
    if isinstance(source, HuggingFaceSource):
        parts = [source.configuration, source.split, source.max_documents and f"first {source.max_documents:,}"]
        return (source.huggingface, use, "hub: " + ", ".join(str(part) for part in parts if part), "-", "-")
    if "package" in found:
        return (_name(source), use, f"package {found['package']} {found['version']}", "-", "-")
    size = found.get("bytes_in_all")
    what = f"Python {found['python']}" if "python" in found else "not on record"
    return (_name(source), use, what, "-" if size is None else f"{size:,}", "-")


def digest_of(digests: list[str]) -> str:
    """One SHA-256 for several files: their own, or that of the list that `sha256sum FILE... | cut -c -64` prints."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{each}\n" for each in digests).encode()).hexdigest()


def _stored(version: str, manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    suffix = "" if version == FIRST else f", version {version}"
    rows: list[tuple[str, ...]] = []
    for part, name in (("train", "training"), ("held_out", "held out")):
        counts, file = manifest["parts"][part], manifest["files"][f"{part}.bin"]
        rows.append((name + suffix, f"{counts['documents']:,}", f"{counts['tokens']:,}", f"`{file['sha256']}`"))
    return rows


def _name(source: Source) -> str:
    if isinstance(source, BuiltinSource):
        return source.builtin
    if isinstance(source, HuggingFaceSource):
        return source.huggingface
    return Path(source.path).name
