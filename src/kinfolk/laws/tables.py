"""Reads CSV and parquet into rows of text, each with a name that a person can find it by."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinfolk.errors import KinfolkError

_FIX = "give a .csv or .parquet table with a row for each run, or a run directory"


@dataclass(frozen=True)
class Row:
    """One row: its values as text by column, and what to call it."""

    name: str
    values: dict[str, str]
    own: bool = False
    """Whether it comes from a run of kinfolk."""


def table_rows(path: Path) -> list[Row]:
    """The rows of a .csv (also .tsv) or .parquet file; KinfolkError if it is neither or damaged."""
    if not path.exists():
        raise KinfolkError("there is no such file or run directory", where=str(path), fix=_FIX)
    if path.suffix in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if path.suffix == ".tsv" else ",")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise KinfolkError(f"kinfolk does not read {path.suffix or 'such'} files as tables", where=str(path), fix=_FIX)


def _csv_rows(path: Path, delimiter: str) -> list[Row]:
    rows = []
    try:
        # utf-8-sig also reads files without the mark that spreadsheets put in front.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            header = reader.fieldnames or []
            doubled = [name for name in header if header.count(name) > 1]
            if doubled:
                raise KinfolkError(f"two columns are called {doubled[0]!r}", where=str(path), fix="rename one of them")
            for record in reader:
                line = f"line {reader.line_num}"
                if None in record or None in record.values():
                    found = sum(value is not None for key, value in record.items() if key is not None)
                    found += len(record.get(None) or [])
                    raise KinfolkError(
                        f"{line} has {found} values, the header {len(header)} columns",
                        where=str(path),
                        fix="mend the line",
                    )
                rows.append(Row(line, {key.strip(): value.strip() for key, value in record.items()}))
    except UnicodeDecodeError as error:
        raise KinfolkError("this is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error
    except csv.Error as error:
        raise KinfolkError(f"this is not a CSV table ({error})", where=str(path), fix=_FIX) from error
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise KinfolkError("this is not a whole parquet file", where=str(path), fix=_FIX) from error
    records = table.to_pylist()
    return [
        Row(f"row {index}", {str(key): "" if value is None else str(value) for key, value in record.items()})
        for index, record in enumerate(records, start=1)
    ]


def matching(rows: list[Row], wanted: Mapping[str, str], where: str) -> list[Row]:
    """The rows in which each column of `wanted` has its value; KinfolkError if there is no such column or row."""
    for column, value in wanted.items():
        if not any(column in row.values for row in rows):
            raise KinfolkError(f"there is no column {column!r}", where=where, fix=f"choose one of {names(rows)}")
        present = list(dict.fromkeys(row.values.get(column) or "" for row in rows))
        rows = [row for row in rows if row.values.get(column) == value]
        if not rows:
            shown = ", ".join(present[:6])
            raise KinfolkError(f"no row has {column} = {value!r}", where=where, fix=f"choose one of {shown}")
    return rows


def names(rows: Sequence[Row]) -> str:
    """The columns that there are, for a sentence."""
    return ", ".join(dict.fromkeys(name for row in rows for name in row.values))
