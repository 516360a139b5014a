"""The families that are put side by side: runs, and runs that differ by their seed alone taken together."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.yaml_text import parse_mapping
from kinfolk.report.answer import machines
from kinfolk.report.compare.corpus import Corpus, corpus_of
from kinfolk.report.records import Flops
from kinfolk.report.run import Run, read_run


@dataclass(frozen=True)
class Build:
    """One run folder, with what was asked for and what it was fed."""

    folder: Path
    run: Run
    spec: dict[str, Any]
    """The family file as JSON data, dates as text; empty if it is none."""
    corpus: Corpus | None
    """None where the run's data are not on disk."""

    @property
    def seed(self) -> int | str | None:
        recipe = self.spec.get("recipe")
        seed = recipe.get("seed") if isinstance(recipe, dict) else None
        return seed if isinstance(seed, int | str) else None

    @property
    def cost(self) -> Flops:
        """Of the whole family: the ledger's sum once every stage is trained, the plan's until then."""
        return self.run.spent if self.trained else self.run.plan.total

    @property
    def trained(self) -> bool:
        return all(stage.finished for stage in self.run.stages)

    @property
    def seconds(self) -> float:
        """Of training and growing, as far as that is done."""
        return self.run.training_seconds + self.run.growing_seconds


@dataclass(frozen=True)
class Side:
    """One family: one run, or runs of one specification with several seeds. Its figures are means over the runs."""

    name: str
    builds: tuple[Build, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(build.run for build in self.builds)

    @property
    def strategy(self) -> str:
        return self.runs[0].plan.strategy

    @property
    def seeds(self) -> tuple[int | str | None, ...]:
        return tuple(build.seed for build in self.builds)

    @property
    def complete(self) -> bool:
        return all(run.complete for run in self.runs)

    @property
    def trained(self) -> bool:
        return all(build.trained for build in self.builds)

    @property
    def cost(self) -> Flops:
        return Flops(
            six_nd=fmean(build.cost.six_nd for build in self.builds),
            matmul=fmean(build.cost.matmul for build in self.builds),
        )

    @property
    def tokens(self) -> float:
        """Tokens that all stages read."""
        return fmean(
            sum(stage.finished.tokens if stage.finished else stage.plan.tokens for stage in run.stages)
            for run in self.runs
        )

    @property
    def seconds(self) -> float:
        return fmean(build.seconds for build in self.builds)

    @property
    def machines(self) -> list[str]:
        return list(dict.fromkeys(machine for run in self.runs for machine in machines(run)))


def read_builds(named: Sequence[tuple[Path, str]]) -> list[Build]:
    """The runs in folders, by name; KinfolkError for what is no run."""
    return [_build(folder, read_run(folder, name)) for folder, name in named]


def sides_of(builds: Sequence[Build]) -> list[Side]:
    """The families in the order of their first run; runs that differ by their seed alone are one family.

    The same seed twice is two families: what differs then is something else.
    """
    groups: list[list[Build]] = []
    for build in builds:
        own = next((group for group in groups if _one_family(group, build)), None)
        if own is None:
            groups.append([build])
        else:
            own.append(build)
    names = _short([_name([build.run.name for build in group]) for group in groups])
    unique = [name if names.count(name) == 1 else group[0].run.name for name, group in zip(names, groups, strict=True)]
    return [Side(name, tuple(group)) for name, group in zip(unique, groups, strict=True)]


def _build(folder: Path, run: Run) -> Build:
    return Build(folder, run, _spec(run.family_file), corpus_of(folder))


def _spec(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(parse_mapping(text, "family.yaml", ""), default=str))
    except (KinfolkError, TypeError, ValueError, RecursionError):
        return {}
    return found


def _one_family(group: Sequence[Build], build: Build) -> bool:
    return (
        bool(build.spec)
        and build.seed is not None
        and build.seed not in [other.seed for other in group]
        and _without_seed(build.spec) == _without_seed(group[0].spec)
        and build.corpus == group[0].corpus
    )


def _without_seed(spec: dict[str, Any]) -> dict[str, Any]:
    recipe = spec.get("recipe")
    rest = {key: value for key, value in recipe.items() if key != "seed"} if isinstance(recipe, dict) else recipe
    return {**spec, "recipe": rest}


def _name(names: Sequence[str]) -> str:
    """What the names of several runs begin with, without the seed behind it.

    >>> _name(["chain-seed0", "chain-seed1"]), _name(["a/run"]), _name(["one", "two"])
    ('chain', 'a/run', 'one and more')
    """
    if len(names) == 1:
        return names[0]
    shared = (same[0] for same in takewhile(lambda same: len(set(same)) == 1, zip(*names, strict=False)))
    common = re.sub(r"[-_./ ]*(seed|s)?[-_./ ]*$", "", "".join(shared))
    return common or f"{names[0]} and more"


def _short(names: Sequence[str]) -> list[str]:
    """The names without the words at the end that all of them share, unless nothing is left of one; one name as it is.

    >>> _short(["chain-linear-seed0", "trunk-seed0"]), _short(["run", "a/run"]), _short(["chain-linear"])
    (['chain-linear', 'trunk'], ['run', 'a/run'], ['chain-linear'])
    """
    if len(names) == 1:
        return list(names)
    words = [re.split(r"([-_ ])", name) for name in names]
    shared = 0
    while all(len(each) > shared + 2 for each in words) and len({tuple(each[-shared - 2 :]) for each in words}) == 1:
        shared += 2
    return ["".join(each[: len(each) - shared]) for each in words]
