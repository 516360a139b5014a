"""The public ladders, where this machine has them: a test that needs one is skipped elsewhere."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).parents[3] / "shared" / "data" / "laws"
Runs = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Parameters, tokens, loss."""


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the public data set {name} is not here")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(table: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in table])


def chinchilla_245() -> Runs:
    table = rows("epoch/svg_extracted_data.csv")
    size = column(table, "Model Size")
    return size, column(table, "Training FLOP") / (6 * size), column(table, "loss")


def chinchilla_240() -> Runs:
    """Without the five highest losses, as arXiv 2404.10102 has them."""
    size, tokens, loss = chinchilla_245()
    kept = loss < np.sort(loss)[-5]
    return size[kept], tokens[kept], loss[kept]


def kyo() -> Runs:
    table = rows("kyo/df.csv")
    return column(table, "N"), column(table, "D"), column(table, "loss")


def gadre(dataset: str) -> list[dict[str, Any]]:
    return [row for row in rows("gadre/gadre_104_models.csv") if row["dataset"] == dataset]


def gadre_runs(table: list[dict[str, Any]]) -> Runs:
    return column(table, "N"), column(table, "D"), column(table, "loss_c4_val")
