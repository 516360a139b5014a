"""Adds forecasts to a table of schedules, or to the points of a curve."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.columns import number
from kinfolk.laws.tables import table_rows
from kinfolk.schedule.columns import is_curve, settings_columns
from kinfolk.schedule.curves import curve_schedule, sentences
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.settings import settings_schedule

ADDED = ("predicted", "low", "high")


def predict_document(law: ScheduleLaw, path: Path) -> dict[str, Any]:
    """The rows of a table with `predicted`, `low` and `high` (90 %) added, and warnings where a row is outside.

    Rows are settings of schedules, or points of one curve (`step`, `lr`); a loss is not needed. Where there is one, the
    errors are summed up. KinfolkError for anything else.
    """
    rows = table_rows(path)
    if not rows:
        raise KinfolkError("there are no rows in it", where=str(path), fix="give a table with a row for each run")
    if is_curve(rows):
        rates, steps, flags = curve_schedule(rows, path)
        predicted = law.predict(rates, np.maximum(steps, 1))
        half = law.half_width(rates, np.maximum(steps, 1))
        warnings: list[dict[str, str]] = [{} for _ in rows]
        findings = [*sentences(flags), *law.fitted.outside(rates).values()]
    else:
        columns = settings_columns(rows, ("steps", "peak_lr"), str(path))
        schedules = [settings_schedule(row, columns, path)[0] for row in rows]
        predicted = np.array([float(law.predict(schedule)[0]) for schedule in schedules])
        half = np.array([float(law.half_width(schedule)[0]) for schedule in schedules])
        warnings = [law.fitted.outside(schedule) for schedule in schedules]
        findings = []
    added = zip(predicted, predicted * np.exp(-half), predicted * np.exp(half), warnings, strict=True)
    found = [
        {
            **row.values,
            "predicted": float(loss),
            "low": float(low),
            "high": float(high),
            "warnings": list(outside.values()),
            "outside": list(outside),
        }
        for row, (loss, low, high, outside) in zip(rows, added, strict=True)
    ]
    return {"kind": law.kind, "source": law.source, "rows": found, **_errors(found), "findings": findings}


def _errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the forecasts were worth where losses are known."""
    column = next((name for name in ("loss", "final_loss", "val_loss", "final_val") if name in rows[0]), "")
    losses = [number(row.get(column), column, "table") for row in rows]
    known = [(loss, row) for loss, row in zip(losses, rows, strict=True) if loss is not None]
    if not known:
        return {"mean_absolute_error": None, "inside": None, "known": 0}
    return {
        "mean_absolute_error": float(np.mean([abs(loss - row["predicted"]) for loss, row in known])),
        "inside": float(np.mean([row["low"] <= loss <= row["high"] for loss, row in known])),
        "known": len(known),
    }


def as_csv(document: dict[str, Any]) -> str:
    """The rows as a CSV table: the columns that were there, and the three added ones."""
    rows = document["rows"]
    columns = [name for name in rows[0] if name not in (*ADDED, "warnings", "outside")]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, *ADDED], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **{name: f"{row[name]:.6f}" for name in ADDED}} for row in rows)
    return out.getvalue()
