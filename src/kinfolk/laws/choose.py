"""A law as users name it: a file, a published fit, or runs to fit one to; and how long its tokens are in bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinfolk.errors import KinfolkError
from kinfolk.laws.loss import LossLaw, load_law
from kinfolk.laws.published import published_law

FALLBACK = "besiroglu"
"""The law of plans for which none was given: the published one whose forecasts were tested on its own runs."""

PUBLISHED_BYTES = 4.5
"""Bytes in a token of the published laws' data: MassiveText is 10.5 TB of text in 2.34e12 tokens (Rae et al., arXiv
2112.11446, appendix A; from memory)."""


@dataclass(frozen=True)
class ChosenLaw:
    """A law to forecast with, and what its losses mean in bytes."""

    law: LossLaw
    bytes_per_token: float | None
    """None where nobody knows: then there are no bits per byte for a law in nats per token."""
    bytes_basis: str
    """measured, given, published or unknown."""
    notes: tuple[str, ...] = ()


def choose_law(names: Sequence[str], bytes_per_token: float | None = None) -> ChosenLaw:
    """The law that `names` mean: one file or published name, or runs (folders and tables) that one is fitted to.

    Without names it is a published law, with a note that says so. KinfolkError for anything else.
    """
    if bytes_per_token is not None and not 0.1 <= bytes_per_token <= 1000:
        raise KinfolkError(
            f"{bytes_per_token:g} bytes is not the length of a token", where="--bytes-per-token", fix="use about 4.5"
        )
    runs = [Path(name) for name in names if _is_runs(Path(name))]
    if runs and len(runs) < len(names):
        raise KinfolkError(
            "runs and laws are mixed", where="--law", fix="give one law, or runs alone that a law is fitted to"
        )
    if len(names) > 1 and not runs:
        raise KinfolkError(f"{len(names)} laws are given", where="--law", fix="give one of them")
    chosen = _fitted_to(runs) if runs else _named(names[0] if names else None)
    if bytes_per_token is None:
        return chosen
    return ChosenLaw(chosen.law, bytes_per_token, "given", chosen.notes)


def named_law(name: str) -> LossLaw:
    """A published law, or that in a file: a name with a suffix or of something there is a file."""
    path = Path(name)
    return load_law(path) if path.exists() or path.suffix == ".json" else published_law(name)


def _is_runs(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".csv", ".tsv", ".parquet")


def _named(name: str | None) -> ChosenLaw:
    law = named_law(name or FALLBACK)
    published = law.standing in ("published", "recomputed")
    notes = []
    if name is None:
        notes.append(
            f"no law was given: losses are forecast by the published law {FALLBACK} ({law.source}), which holds for "
            "its own data and tokenizer; --law takes a law of yours, or your runs"
        )
    elif published:
        notes.append(
            f"the published law {law.name} holds for its own data and tokenizer; for yours it is a rough guess"
        )
    return ChosenLaw(law, PUBLISHED_BYTES if published else None, "published" if published else "unknown", tuple(notes))


def _fitted_to(runs: Sequence[Path]) -> ChosenLaw:
    from kinfolk.laws.columns import Choice
    from kinfolk.laws.fitted import fit_runs
    from kinfolk.laws.runs import read_runs

    fitted = fit_runs(read_runs(runs, Choice()), resamples=0)
    measured = _bytes_per_token(runs)
    return ChosenLaw(fitted.law, measured, "measured" if measured else "unknown", fitted.findings)


def _bytes_per_token(runs: Sequence[Path]) -> float | None:
    """What kinfolk's own runs measured: loss in nats per token over loss in nats per byte."""
    from kinfolk.laws.own_runs import own_rows

    folders = [path for path in runs if path.is_dir()]
    rows = [row for folder in folders for row in own_rows(folder)[0]]
    if not rows or len(folders) < len(runs):
        return None
    first = rows[0].values
    return float(first["loss"]) / (math.log(2) * float(first["bits_per_byte"]))
