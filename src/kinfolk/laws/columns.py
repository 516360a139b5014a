"""Which column is which, and what its name says of units and of what is counted."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import shown
from kinfolk.laws.loss import Counting

_USUAL = {
    "parameters": ("parameters", "params", "n", "modelsize", "nparams", "nparameters", "numparams", "numparameters"),
    "tokens": ("tokens", "d", "ntokens", "numtokens", "traintokens", "trainingtokens"),
    "loss": ("loss", "l", "heldoutloss", "valloss", "validationloss", "evalloss", "testloss", "finalloss"),
    "flops": ("flops", "flop", "c", "compute", "trainingflop", "trainingflops", "trainflops", "flops6nd"),
}
"""Names by which columns are known, in order of preference; compared without case, spaces and punctuation."""

_UNITS = {"k": (1e3, "thousands"), "m": (1e6, "millions"), "b": (1e9, "billions"), "t": (1e12, "trillions")}


@dataclass(frozen=True)
class Choice:
    """Columns that the user names; None is found by its usual names."""

    parameters: str | None = None
    tokens: str | None = None
    loss: str | None = None
    flops: str | None = None
    """6 N D, from which tokens are computed where there is no column of tokens."""
    family: str | None = None
    """Families of models, which get an intercept each in the unified compute law."""


def choose_columns(present: Sequence[str], choice: Choice, where: str) -> dict[str, str]:
    """The column of each role: parameters, loss, and tokens or flops (both if both are there).

    KinfolkError that names the missing role and the columns that there are.
    """
    chosen: dict[str, str] = {}
    for role in ("parameters", "tokens", "loss", "flops", "family"):
        wanted = getattr(choice, role)
        if wanted is not None and wanted not in present:
            raise KinfolkError(
                f"there is no column {wanted!r}", where=f"{where}: --{role}", fix=f"choose one of {', '.join(present)}"
            )
        found = wanted or (_usual(present, role) if role in _USUAL else None)
        if found is not None:
            chosen[role] = found
    if choice.flops and not choice.tokens:
        chosen.pop("tokens", None)
    for role in ("parameters", "tokens", "loss"):
        if role not in chosen and not (role == "tokens" and "flops" in chosen):
            raise KinfolkError(
                f"no column is known to hold the {role}; there are {_listed(present)}",
                where=where,
                fix=f"say which one with --{role} COLUMN" + (" (or --flops COLUMN)" if role == "tokens" else ""),
            )
    return chosen


def _listed(names: Sequence[str]) -> str:
    """The names that a table has, as far as people would read them."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"{', '.join(map(shown, names[:30]))}{more}" if names else "none"


def _usual(present: Sequence[str], role: str) -> str | None:
    plain = {_plain(name[: unit.start()] if (unit := _unit(name)) else name): name for name in reversed(present)}
    return next((plain[usual] for usual in _USUAL[role] if usual in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def unit_in_name(column: str) -> tuple[float, str]:
    """The unit that a name such as `params_B`, `tokens (M)` or `tokens_billions` ends with, as factor and word.

    >>> unit_in_name("params_B"), unit_in_name("tokens"), unit_in_name("tokens (trillions)")
    ((1000000000.0, 'billions'), (1.0, ''), (1000000000000.0, 'trillions'))
    """
    found = _unit(column)
    if found is None:
        return 1.0, ""
    ending = (found["letter"] or found["word"]).lower()
    return next((factor, word) for letter, (factor, word) in _UNITS.items() if ending in (letter, word, word[:-1]))


def _unit(column: str) -> re.Match[str] | None:
    """Where a name ends with a unit: a letter after an underscore or in brackets, or a whole word."""
    pattern = r"(?:_|[\s_]*[(\[])(?P<letter>[kmbt])[)\]]?$|[\s_(\[-]+(?P<word>(?:thousand|[mbtr]+illion)s?)[)\]]?$"
    return re.search(pattern, column, re.IGNORECASE)


def counting_of(column: str) -> Counting:
    """What a column of parameters counts, by its name."""
    plain = _plain(column)
    without = re.search(r"(no|non|without|excl|minus|wo)\w*(embed|vocab)|body", plain)
    return "non_embedding" if without else "total"


def unit_of_loss(column: str) -> str:
    """The unit of a column of losses, by its name."""
    plain = _plain(column)
    if "bitsperbyte" in plain or "bpb" in plain:
        return "bits per byte"
    if "bitsperchar" in plain or "bpc" in plain:
        return "bits per character"
    return "nats per token"


def number(text: str | None, column: str, name: str) -> float | None:
    """A cell as a number; None if it is empty, NaN or infinite (a run that diverged); KinfolkError if it is a word."""
    if text is None or not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise KinfolkError(
            f"{text!r} is not a number", where=f"{name}, column {column!r}", fix="write plain numbers such as 1.2e9"
        ) from None
    return value if math.isfinite(value) else None
