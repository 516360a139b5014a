"""The runs table: what was trained on how much, and the loss it reached; from tables and from kinfolk's own runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError
from kinfolk.laws.checks import check_one_population, check_units, duplicates, lines
from kinfolk.laws.columns import Choice, choose_columns, counting_of, number, unit_in_name, unit_of_loss
from kinfolk.laws.loss import Counting
from kinfolk.laws.objectives import Array
from kinfolk.laws.own_runs import own_rows
from kinfolk.laws.tables import Row, matching, table_rows


@dataclass(frozen=True)
class RunTable:
    """Runs that one law can be fitted to: arrays of shape (run,)."""

    parameters: Array
    tokens: Array
    loss: Array
    families: NDArray[np.str_] | None
    """Family of models that each row belongs to, where a column says so."""
    groups: NDArray[np.int64] | None
    """Which run each row is a checkpoint of; None if every row is a run."""
    names: tuple[str, ...]
    """What to call each row: its file and line, or run and member."""
    counting: Counting
    unit: str
    """Of the loss."""
    source: str
    findings: tuple[str, ...]
    """What is odd about the input, in plain sentences."""

    @property
    def compute(self) -> Array:
        """6 N D in FLOPs."""
        return 6.0 * self.parameters * self.tokens

    def __len__(self) -> int:
        return len(self.loss)


def read_runs(
    paths: Sequence[Path],
    choice: Choice,
    *,
    only: Mapping[str, str] | None = None,
    counting: Counting | None = None,
) -> RunTable:
    """The runs in CSV or parquet tables, or in kinfolk's run directories.

    `choice` names columns that are not to be found by their usual names; `only` keeps the rows in which columns have a
    value. Raises KinfolkError for what is missing, not a number, not positive, off by a factor of a million or a
    billion, or measured with different tokenizers or on different texts. What is merely odd is a finding.
    """
    if not paths:
        raise KinfolkError("there are no runs", fix="give a table of runs or a run directory")
    rows: list[Row] = []
    findings: list[str] = []
    for path in paths:
        if path.is_dir():
            found, odd = own_rows(path)
            findings += odd
        else:
            found = table_rows(path)
        rows += found
    where = ", ".join(str(path) for path in paths)
    if counting == "non_embedding" and rows and rows[0].own and choice.parameters is None:
        choice = replace(choice, parameters="parameters_non_embedding", tokens="tokens_non_embedding")
    rows = matching(rows, only or {}, where)
    check_one_population(rows, where)
    rows, odd = duplicates(rows)
    findings += odd
    return _table(rows, choice, counting, where, tuple(findings))


def _table(
    rows: list[Row], choice: Choice, counting: Counting | None, where: str, findings: tuple[str, ...]
) -> RunTable:
    if not rows:
        raise KinfolkError("there are no runs in it", where=where, fix="give a table with a row for each run")
    columns = choose_columns(list(dict.fromkeys(name for row in rows for name in row.values)), choice, where)
    odd = list(findings)
    family = columns.pop("family", None)
    values: dict[str, list[float | None]] = {}
    for role, column in columns.items():
        factor, unit = unit_in_name(column) if role in ("parameters", "tokens") else (1.0, "")
        if unit:
            odd.append(f"column {column!r} is read as {unit}, as its name says")
        parsed = [number(row.values.get(column), column, row.name) for row in rows]
        values[role] = [None if value is None else value * factor for value in parsed]
    whole = [index for index in range(len(rows)) if all(column[index] is not None for column in values.values())]
    missing = [rows[index].name for index in range(len(rows)) if index not in set(whole)]
    if missing:
        odd.append(f"{lines(missing)}: no value, left out")
    if not whole:
        raise KinfolkError(
            f"no row has a value in every one of {', '.join(map(repr, columns.values()))}",
            where=where,
            fix="choose other columns",
        )
    arrays = {role: np.array([column[index] for index in whole], dtype=np.float64) for role, column in values.items()}
    names = [rows[index].name for index in whole]
    if "tokens" not in arrays:
        check_units(names, {role: arrays[role] for role in ("parameters", "loss", "flops")}, columns, where)
        arrays["tokens"] = arrays["flops"] / (6 * arrays["parameters"])
        odd.append(f"tokens are computed from column {columns['flops']!r} as C / 6N")
        columns = {**columns, "tokens": f"{columns['flops']} / 6N"}
    if not rows[0].own:
        odd += check_units(names, arrays, columns, where)
    groups = [rows[index].values.get("run") for index in whole]
    distinct = {value: number for number, value in enumerate(dict.fromkeys(groups))}
    grouped = None not in distinct and 1 < len(distinct) < len(whole) and not rows[0].own
    table = RunTable(
        parameters=arrays["parameters"],
        tokens=arrays["tokens"],
        loss=arrays["loss"],
        families=np.array([rows[index].values.get(family, "") for index in whole]) if family else None,
        groups=np.array([distinct[value] for value in groups]) if grouped else None,
        names=tuple(names),
        counting=counting or counting_of(columns["parameters"]),
        unit=unit_of_loss(columns["loss"]),
        source=where,
        findings=tuple(odd),
    )
    if counting is None and table.counting == "total" and not rows[0].own:
        table = replace(
            table, findings=(*table.findings, f"N is taken to count all parameters (column {columns['parameters']!r})")
        )
    return table
