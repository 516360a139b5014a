"""Runs that a schedule law is fitted to: from tables of settings, whole loss curves, and kinfolk's own run folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.checks import check_one_population, duplicates, lines
from kinfolk.laws.tables import matching, table_rows
from kinfolk.schedule.columns import is_curve
from kinfolk.schedule.curves import Curve, curve_of, sentences
from kinfolk.schedule.labels import with_high_losses
from kinfolk.schedule.own_runs import own_runs
from kinfolk.schedule.run import Run
from kinfolk.schedule.settings import settings_runs


@dataclass(frozen=True)
class Runs:
    """Runs on one data set, of one model unless they are a sweep over sizes, and what is odd about them."""

    runs: tuple[Run, ...]
    source: str
    findings: tuple[str, ...]
    """Plain sentences; those about a curve name the fault first, as in `unsorted:`."""

    @property
    def finished(self) -> tuple[Run, ...]:
        """Those that did not diverge."""
        return tuple(run for run in self.runs if not run.diverged)

    @property
    def size(self) -> float | None:
        """Parameters of the model, where the runs say so."""
        return next((run.size for run in self.runs if run.size is not None), None)

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens of one optimizer step, where the runs say so."""
        return next((run.tokens_per_step for run in self.runs if run.tokens_per_step is not None), None)


def read_runs(paths: Sequence[Path], *, only: Mapping[str, str] | None = None) -> Runs:
    """The runs of one model in CSV or parquet tables (of settings, or of a curve) and in kinfolk's run folders.

    `only` keeps the rows of tables in which columns have a value. KinfolkError for what cannot be schedules and losses,
    for several sizes or data sets at once, and if every run diverged. What is merely odd is a finding.
    """
    found = _read_all(paths, only)
    _check_one_model(found.runs, found.source)
    return _labelled(found)


def read_sweep(paths: Sequence[Path], *, only: Mapping[str, str] | None = None) -> Runs:
    """The same of models of any sizes, for what they say of divergence; KinfolkError if some do not say their size."""
    found = _read_all(paths, only)
    sizes = {run.size for run in found.runs}
    unknown = [run.name for run in found.runs if run.size is None]
    if unknown and len(sizes) > 2:
        raise KinfolkError(
            f"{len(unknown)} of the runs, such as {unknown[0]}, do not say their size, and the others have "
            f"{len(sizes) - 1}",
            where=found.source,
            fix="add a column `size`",
        )
    batches = {run.tokens_per_step for run in found.runs if run.tokens_per_step is not None}
    said = found.findings
    if len(batches) > 1:
        said += (f"the runs have {len(batches)} numbers of tokens per step, which the prediction does not know of",)
    return _labelled(replace(found, findings=said))


def _read_all(paths: Sequence[Path], only: Mapping[str, str] | None) -> Runs:
    if not paths:
        raise KinfolkError("there are no runs", fix="give a table of runs, loss curves or a run directory")
    found: list[Run] = []
    findings: list[str] = []
    for path in paths:
        runs, odd = _read(path, only or {})
        found += runs
        findings += odd
    return Runs(tuple(found), ", ".join(str(path) for path in paths), tuple(findings))


def _labelled(found: Runs) -> Runs:
    """The runs, those of far too high a loss counted among the diverged; KinfolkError if every one is."""
    runs = with_high_losses(found.runs)
    diverged = [run.name for run in runs if run.diverged]
    if len(diverged) == len(runs):
        raise KinfolkError("every run diverged", where=found.source, fix="give runs that ended with a loss")
    said = found.findings
    if diverged:
        said += (f"diverged: {lines(diverged)}; not fitted, but counted for the risk of divergence",)
    return Runs(tuple(runs), found.source, said)


def _read(path: Path, only: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    if path.is_dir():
        return own_runs(path, only)
    rows = table_rows(path)
    if not rows:
        raise KinfolkError("there are no runs in it", where=str(path), fix="give a table with a row for each run")
    rows = matching(rows, only, str(path))
    check_one_population(rows, str(path))
    if is_curve(rows):
        curve, flags = curve_of(rows, path)
        return [_whole(curve, path.stem)], sentences(flags)
    rows, odd = duplicates(rows)
    runs, more = settings_runs(rows, path)
    return runs, odd + more


def _whole(curve: Curve, name: str) -> Run:
    """A curve as a run: it ends where the curve ends."""
    if curve.rates is None:
        raise KinfolkError(
            "there is no column of learning rates", where=name, fix="add a column `lr`, or name this file in a table"
        )
    points = np.array(curve.steps), np.array(curve.loss)
    return Run(name, curve.rates, None if curve.diverged else float(curve.loss[-1]), *points)


def _check_one_model(runs: Sequence[Run], where: str) -> None:
    sizes = sorted({run.size for run in runs if run.size is not None})
    if len(sizes) > 1:
        raise KinfolkError(
            f"the runs are of {len(sizes)} sizes ({', '.join(f'{size:.4g}' for size in sizes[:4])}"
            f"{', ...' if len(sizes) > 4 else ''}): two or three schedules a size cannot tell them apart",
            where=where,
            fix="fit one size at a time, as in --where params=1.24e8; of a run folder, with --where member=NAME",
        )
    batches = sorted({run.tokens_per_step for run in runs if run.tokens_per_step is not None})
    if len(batches) > 1:
        raise KinfolkError(
            f"the runs have {len(batches)} numbers of tokens per step", where=where, fix="fit one of them at a time"
        )
