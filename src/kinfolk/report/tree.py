"""The stages as a tree: a drawing of lanes, as of a version history, with ancestors above."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinfolk.report import numbers
from kinfolk.report.run import Run, StageRun

LANE = 26
ROW = 92
MIDDLE = 44


@dataclass(frozen=True)
class Node:
    """One stage in the drawing; the words stand beside it, in a row of `ROW` pixels."""

    stage: StageRun
    x: float
    y: float
    radius: float
    edge: str
    """What the stage starts from, in words."""
    size: str
    work: str
    colour: str
    """CSS variable, as in the plots."""
    path: str
    """SVG path from the parent, empty for a root."""
    others: tuple[str, ...]
    """Stages that are neither this one nor its ancestors."""


@dataclass(frozen=True)
class Tree:
    nodes: tuple[Node, ...]
    width: int
    height: int
    first: str
    """The stage that is shown first: one that is under way, or else the last."""


def tree(run: Run, colours: Mapping[str, str]) -> Tree:
    """Rows in depth-first order; the largest subtree goes on in its parent's lane, others leave it first."""
    children: dict[str | None, list[StageRun]] = {}
    for stage in run.stages:
        children.setdefault(stage.plan.parent, []).append(stage)
    rows = _rows(children.get(None, []), children, 0, root=True)
    lanes = max(lane for _, lane in rows) + 1
    largest = max(stage.plan.parameters.total for stage in run.stages)
    places = {stage.plan.name: (18.0 + lane * LANE, MIDDLE + ROW * row) for row, (stage, lane) in enumerate(rows)}
    nodes = []
    for stage, _ in rows:
        x, y = places[stage.plan.name]
        lineage = {each.plan.name for each in (*run.ancestors(stage), stage)}
        nodes.append(
            Node(
                stage=stage,
                x=x,
                y=y,
                radius=round(5 + 9 * (stage.plan.parameters.total / largest) ** 0.5, 2) if largest > 0 else 8,
                edge=edge(stage),
                size=_size(stage),
                work=f"{numbers.count(stage.plan.tokens)} tokens, {numbers.flops(stage.plan.flops.six_nd)} (6ND)",
                colour=colours[stage.plan.name],
                path=_path(places[stage.plan.parent], (x, y)) if stage.plan.parent else "",
                others=tuple(each.plan.name for each in run.stages if each.plan.name not in lineage),
            )
        )
    begun = [stage.plan.name for stage in run.stages if stage.state == "unfinished"]
    first = (begun or [run.stages[-1].plan.name])[0]
    return Tree(tuple(nodes), 36 + (lanes - 1) * LANE, ROW * len(rows), first)


def edge(stage: StageRun) -> str:
    """What a stage starts from."""
    source = stage.plan.source
    if source.kind == "scratch":
        return "from scratch" + (f", seed {source.seed}" if source.seed is not None else "")
    if source.kind == "load":
        return f"loaded from {source.folder}"
    if source.kind == "continue":
        return f"continues {stage.plan.parent}"
    operator = source.operator or {}
    detail = ", ".join(f"{operator[key]}" for key in ("width", "depth") if key in operator)
    return f"grown from {stage.plan.parent}" + (f" ({detail})" if detail else "")


def _rows(
    stages: Sequence[StageRun], children: dict[str | None, list[StageRun]], lane: int, root: bool = False
) -> list[tuple[StageRun, int]]:
    def weight(stage: StageRun) -> int:
        return 1 + sum(weight(child) for child in children.get(stage.plan.name, []))

    ordered = list(stages) if root else sorted(stages, key=weight)
    rows: list[tuple[StageRun, int]] = []
    for index, stage in enumerate(ordered):
        own = lane if root or index == len(ordered) - 1 else lane + 1
        rows += [(stage, own), *_rows(children.get(stage.plan.name, []), children, own)]
    return rows


def _path(parent: tuple[float, float], child: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = parent, child
    if x0 == x1:
        return f"M{x0} {y0}V{y1}"
    return f"M{x0} {y0}V{y1 - 40}C{x0} {y1 - 12} {x1} {y1 - 30} {x1} {y1}"


def _size(stage: StageRun) -> str:
    text = f"{numbers.count(stage.plan.parameters.total)} parameters"
    shape = stage.plan.shape or {}
    if "num_hidden_layers" in shape and "hidden_size" in shape:
        text += f", {shape['num_hidden_layers']} layers {numbers.TIMES} {shape['hidden_size']}"
    return text
