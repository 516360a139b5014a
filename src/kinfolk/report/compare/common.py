"""Which held-out documents several runs have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kinfolk.errors import KinfolkError
from kinfolk.report.compare.corpus import Agreement, by_digest, by_size, common_documents
from kinfolk.report.compare.sides import Build


@dataclass(frozen=True)
class Common:
    """What runs hold out in common: whether it is the same text, and the documents that all of them have."""

    agreement: Agreement
    places: dict[str, list[int] | None]
    """Of these documents among all that a run holds out, by its name; None for all in their order. Empty for none."""
    problem: str = ""
    """Why there is none, or none is known; empty where there are some."""


def held_in_common(builds: Sequence[Build], wanted: bool) -> Common:
    """What runs hold out in common; where the digests of the tokens do not settle it, texts are read if `wanted`."""
    corpora = [build.corpus for build in builds if build.corpus]
    sizes = [_held_out_bytes(build) for build in builds]
    if len(corpora) < len(builds):
        return Common(by_size(sizes), {}, "the data of a run are not on disk")
    found = by_digest(corpora)
    if found.text == "same":
        return Common(found, {build.run.name: None for build in builds})
    if not wanted:
        return Common(found, {}, "the texts were not read")
    from kinfolk.evaluate.document_bits import document_digests

    try:
        digests = [document_digests(build.folder) for build in builds]
    except KinfolkError as error:
        # Without the text, the ledgers' counts are all that there is to go by.
        return Common(replace(by_size(sizes), tokenizer=found.tokenizer), {}, error.problem)
    places = common_documents(digests)
    count = len(places[0])
    if not count:
        return Common(replace(found, text="different", documents=0), {}, "no held-out document is in all of them")
    named: dict[str, list[int] | None] = {build.run.name: place for build, place in zip(builds, places, strict=True)}
    if all(count == len(each) for each in digests):
        return Common(replace(found, text="same text"), named)
    return Common(replace(found, text="in part", documents=count), named)


def _held_out_bytes(build: Build) -> float | None:
    if build.run.members:
        return build.run.members[0].held_out.bytes
    return build.run.data.held_out_bytes if build.run.data else None
