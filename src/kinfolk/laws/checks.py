"""Whether a table of runs can be what it says it is."""

from collections.abc import Mapping, Sequence

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.columns import unit_of_loss
from kinfolk.laws.objectives import Array, Mask
from kinfolk.laws.tables import Row

_COUNTS = (("parameters", 2e3, 1e14), ("tokens", 2e4, 1e17))
"""What a count of each cannot be below or above."""
_LOWEST_RATIO, _HIGHEST_RATIO = 1e-2, 3e5
"""Tokens per parameter; beyond, a column is in other units than the other one."""
_HIGHEST_LOSS = 15.0
"""ln of a vocabulary of three million."""

_POPULATION = {
    "tokenizers": ("tokenizer", "tokeniser", "tokenizername", "vocab", "vocabsize", "vocabulary"),
    "evaluation sets": (
        *("evaluation", "evaluationset", "evalset", "evaldata", "evaldataset", "evalname", "eval", "valset", "valdata"),
        *("validationset", "validationdata", "heldout", "heldoutset", "testset", "testdata", "benchmark"),
    ),
    "ways of counting parameters": ("convention", "counting", "countingrule", "parametercounting", "countedparameters"),
    "training data": ("dataset", "data", "corpus", "trainset", "traindata", "trainingdata", "trainingset"),
}
"""Columns in which all runs of one law agree."""


def lines(names: Sequence[str]) -> str:
    """Some names for a sentence: the first three and how many more.

    >>> lines(["line 2", "line 3"]), lines([f"line {n}" for n in range(2, 9)])
    ('line 2, line 3', 'line 2, line 3, line 4 and 4 more')
    """
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def check_one_population(rows: Sequence[Row], where: str) -> None:
    """KinfolkError if the runs were trained or measured differently: their losses do not compare."""
    for what, usual in _POPULATION.items():
        for column in dict.fromkeys(name for row in rows for name in row.values):
            if "".join(letter for letter in column.lower() if letter.isalnum()) not in usual:
                continue
            values = list(dict.fromkeys(row.values.get(column, "") for row in rows))
            # A column called `eval` may hold the losses themselves.
            if len(values) > 1 and (what == "tokenizers" or not all(map(_is_number, values))):
                raise KinfolkError(
                    f"the runs have {len(values)} {what} (column {column!r}: {', '.join(values[:4])}"
                    f"{', ...' if len(values) > 4 else ''}); their losses do not compare",
                    where=where,
                    fix=f"fit one at a time, as in --where {column}={values[0]}",
                )


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def duplicates(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without exact repetitions, and what there is to say about them."""
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    kept, repeated = [], []
    for row in rows:
        key = tuple(sorted(row.values.items()))
        if key in seen:
            repeated.append(f"{row.name} (as {seen[key]})")
        else:
            seen[key] = row.name
            kept.append(row)
    findings = [f"{len(repeated)} duplicated rows are counted once: {lines(repeated)}"] if repeated else []
    return kept, findings


def check_units(names: Sequence[str], arrays: Mapping[str, Array], columns: Mapping[str, str], where: str) -> list[str]:
    """KinfolkError for values that cannot be counts or losses; findings for what is merely odd.

    `arrays` are by role, of shape (run,).
    """
    for role, values in arrays.items():
        _refuse(values <= 0, names, values, columns[role], where, "is not positive", "mend or remove these rows")
    for role, low, high in _COUNTS:
        if role not in arrays:
            continue
        values = arrays[role]
        _refuse(
            values < low,
            names,
            values,
            columns[role],
            where,
            f"cannot be a count of {role}: it looks like millions or billions",
            f"multiply by 1e6 or 1e9, or name the column with its unit, as in {role}_M or {role}_B",
        )
        _refuse(
            values > high, names, values, columns[role], where, f"is too large for a count of {role}", "check its unit"
        )
    unit = unit_of_loss(columns["loss"])
    name = columns["loss"].lower()
    if unit == "nats per token" and ("ppl" in name or "perplexity" in name):
        raise KinfolkError(
            f"column {columns['loss']!r} holds perplexities", where=where, fix="give their natural logarithms"
        )
    _refuse(
        arrays["loss"] > _HIGHEST_LOSS,
        names,
        arrays["loss"],
        columns["loss"],
        where,
        "is too large for a loss per token: it looks like a perplexity",
        "give losses in nats per token, such as the logarithm of a perplexity",
    )
    return _compared(names, arrays, columns, where) if "tokens" in arrays else []


def _compared(names: Sequence[str], arrays: Mapping[str, Array], columns: Mapping[str, str], where: str) -> list[str]:
    """Columns against each other."""
    findings = []
    ratios = arrays["tokens"] / arrays["parameters"]
    for odd, size in ((ratios < _LOWEST_RATIO, "few"), (ratios > _HIGHEST_RATIO, "many")):
        _refuse(
            odd,
            names,
            ratios,
            f"{columns['tokens']} / {columns['parameters']}",
            where,
            f"is too {size} tokens per parameter: one of the two columns is off by a factor such as 1e6 or 1e9",
            "give both as plain counts in every row, or name columns with their unit, as in tokens_B",
        )
    if "flops" in arrays and "6N" not in columns["tokens"]:
        factor = float(np.exp(np.median(np.log(arrays["flops"] / (6 * arrays["parameters"] * arrays["tokens"])))))
        if not 0.5 < factor < 2.0:
            findings.append(
                f"column {columns['flops']!r} is {factor:.3g} times 6 N D: it, the parameters or the tokens may count "
                "something else"
            )
    compute, loss = np.log(arrays["parameters"] * arrays["tokens"]), arrays["loss"]
    if len(loss) >= 3 and np.ptp(loss) == 0:
        raise KinfolkError(
            f"column {columns['loss']!r} is {loss[0]:.6g} in every row", where=where, fix="name the losses with --loss"
        )
    findings += _scatter(arrays)
    if len(loss) >= 5 and np.ptp(loss) > 0 and np.ptp(compute) > 0 and np.corrcoef(compute, loss)[0, 1] > 0.3:
        findings.append(f"column {columns['loss']!r} rises with compute: is it a loss?")
    triples = list(zip(*(arrays[role].tolist() for role in ("parameters", "tokens", "loss")), strict=True))
    repeated = [name for name, triple in zip(names, triples, strict=True) if triples.count(triple) > 1]
    if repeated:
        findings.append(f"{lines(repeated)} have the same parameters, tokens and loss as another row; all are counted")
    return findings


SCATTER = 0.01
"""Share of the loss by which runs of one N and D may differ without a word: seeds do not differ by more."""


def _scatter(arrays: Mapping[str, Array]) -> list[str]:
    """A finding where runs of the same N and D end at different losses: then the recipes differ."""
    losses: dict[tuple[float, float], list[float]] = {}
    for size, tokens, loss in zip(*(arrays[role].tolist() for role in ("parameters", "tokens", "loss")), strict=True):
        losses.setdefault((size, tokens), []).append(loss)
    widest = max(max(found) / min(found) for found in losses.values()) - 1
    if widest <= SCATTER:
        return []
    runs = sum(map(len, losses.values()))
    return [
        f"{runs} runs are at {len(losses)} points of N and D, and at one of them their losses differ by {widest:.0%}: "
        "the law goes through the middle of unlike recipes; for that of good ones give the best run of each point"
    ]


def _refuse(wrong: Mask, names: Sequence[str], values: Array, column: str, where: str, problem: str, fix: str) -> None:
    found = [f"{name} ({value:.6g})" for name, value, bad in zip(names, values, wrong, strict=True) if bad]
    if found:
        raise KinfolkError(f"column {column!r} {problem}: {lines(found)}", where=where, fix=fix)
