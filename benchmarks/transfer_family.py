"""The bases of benchmarks/transfer.py: a chain of three members, the largest one continued on other text, and a model
with another tokenizer. All are ordinary `kinfolk build`s, one of each kind for every seed.
"""

import bz2
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from progressive import CLASSICS, HERE, build_all, events, prepare

sys.path.append(str(HERE.parent / "tests" / "evaluate"))
from stories260k import load_model as load_stories_model
from stories260k import load_tokenizer as load_stories_tokenizer

DATA = CLASSICS.parent
MODERN = DATA / "modern_pd" / "modern_pd.jsonl.bz2"

MEMBERS = ("100k", "200k", "400k")
CONTINUED = "400k-modern"
OTHER = "200k-vocabulary512"
STORIES = "stories260K"
BASES = (*MEMBERS, CONTINUED, OTHER, STORIES)
CONTINUED_TOKENS = 0.4e6
OTHER_TOKENS = 1.2e6
OTHER_VOCABULARY = 512
MODERN_DOCUMENT_EVERY = 12
"""Enough of that text for one pass."""


def family_settings(seed: int) -> list[str]:
    return ["strategy=progressive", "recipe.peak_exponent=0.25", f"recipe.seed={seed}"]


def build_bases(work: Path, seeds: Sequence[int], bases: Sequence[str], jobs: int) -> None:
    """Build all bases that are not there yet."""
    kinds = {"family": _chain} | ({"other": _other} if OTHER in bases else {})
    for kind, write in kinds.items():
        missing = [f"seed{seed}" for seed in seeds if not _is_built(work / kind / f"seed{seed}")]
        if missing:
            runs = {name: family_settings(int(name.removeprefix("seed"))) for name in missing}
            build_all(write(work / kind), work / kind, runs, jobs)
        failed = [name for name in missing if not _is_built(work / kind / name)]
        if failed:
            sys.exit(f"not built: {kind}, {', '.join(failed)}")
    if STORIES in bases and not (work / STORIES).exists():
        beside = work / f"{STORIES}.new"
        load_stories_model().save_pretrained(beside)
        load_stories_tokenizer().save_pretrained(beside)
        beside.rename(work / STORIES)


def _is_built(run: Path) -> bool:
    return any(event["event"] == "build_finished" for event in events(run))


def base_folder(work: Path, seed: int, name: str) -> Path:
    """Where a base is; stories260K is the same for every seed."""
    if name == STORIES:
        return work / STORIES
    return work / ("other" if name == OTHER else "family") / f"seed{seed}" / "members" / name


def _chain(work: Path) -> Path:
    """Write the family file, and its data tokenised once for all seeds; returns its path."""
    family = prepare(work, len(MEMBERS))
    document = yaml.safe_load(family.read_text())
    modern = work / "modern.jsonl"
    if not modern.exists():
        with bz2.open(MODERN, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines][::MODERN_DOCUMENT_EVERY]
        modern.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    version = {"name": "modern", "train": [{"path": str(modern.resolve())}], "tokens": CONTINUED_TOKENS}
    document["data"]["versions"] = [version]
    return _written(family, document, work)


def _other(work: Path) -> Path:
    family = prepare(work, len(MEMBERS))
    document = yaml.safe_load(family.read_text())
    member = next(member for member in document["members"] if member["name"] == "200k")
    document["members"] = [member | {"name": OTHER, "tokens": OTHER_TOKENS}]
    document["tokenizer"] = {"vocab_size": OTHER_VOCABULARY}
    return _written(family, document, work)


def _written(family: Path, document: dict[str, Any], work: Path) -> Path:
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    if not (work / "data").exists():
        from kinfolk.data.versions import prepare_versions as tokenise
        from kinfolk.family.load import load_family, with_absolute_paths

        loaded = load_family(str(family))
        tokenise(with_absolute_paths(loaded), loaded.folder, work / "data", where=loaded.origin)
    return family
