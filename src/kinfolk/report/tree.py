"""The stages as a tree: a drawing of lanes, as of a version history, with ancestors above."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinfolk.report import numbers
from kinfolk.report.run import Run, StageRun

LANE = 26
ROW = 92
TOP = 34
WIDTH = 344


@dataclass(frozen=True)
class Node:
    """One stage in the drawing."""

    x: float
    y: float
    radius: float
    name: str
    edge: str
    """What the stage starts from, in words."""
    kind: str
    size: str
    work: str
    state: str
    text_x: float
    colour: str
    """CSS variable, as in the plots."""
    path: str
    """SVG path from the parent, empty for a root."""


@dataclass(frozen=True)
class Tree:
    nodes: tuple[Node, ...]
    width: int
    height: int


def tree(run: Run, colours: Mapping[str, str]) -> Tree:
    """Rows in depth-first order; the largest subtree goes on in its parent's lane, others leave it first."""
    children: dict[str | None, list[StageRun]] = {}
    for stage in run.stages:
        children.setdefault(stage.plan.parent, []).append(stage)
    rows = _rows(children.get(None, []), children, 0, root=True)
    lanes = max(lane for _, lane in rows) + 1
    largest = max(stage.plan.parameters.total for stage in run.stages)
    places = {stage.plan.name: (18.0 + lane * LANE, TOP + ROW * row) for row, (stage, lane) in enumerate(rows)}
    nodes = []
    for stage, _ in rows:
        x, y = places[stage.plan.name]
        nodes.append(
            Node(
                x=x,
                y=y,
                radius=round(5 + 9 * (stage.plan.parameters.total / largest) ** 0.5, 2) if largest > 0 else 8,
                name=_clip(stage.plan.name, 34),
                edge=_edge(stage),
                kind=stage.plan.source.kind,
                size=_size(stage),
                work=f"{numbers.count(stage.plan.tokens)} tokens, {numbers.flops(stage.plan.flops.six_nd)} (6ND)",
                state=stage.state,
                text_x=18.0 + lanes * LANE,
                colour=colours[stage.plan.name],
                path=_path(places[stage.plan.parent], (x, y)) if stage.plan.parent else "",
            )
        )
    return Tree(tuple(nodes), WIDTH + (lanes - 1) * LANE, ROW * len(rows) + 8)


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


def _edge(stage: StageRun) -> str:
    source = stage.plan.source
    if source.kind == "scratch":
        return "from scratch" + (f", seed {source.seed}" if source.seed is not None else "")
    if source.kind == "load":
        return _clip(f"loaded from {source.folder}", 46)
    if source.kind == "continue":
        return _clip(f"continues {stage.plan.parent}", 46)
    operator = source.operator or {}
    detail = ", ".join(f"{operator[key]}" for key in ("width", "depth") if key in operator)
    return _clip(f"grown from {stage.plan.parent}" + (f" ({detail})" if detail else ""), 46)


def _size(stage: StageRun) -> str:
    text = f"{numbers.count(stage.plan.parameters.total)} parameters"
    shape = stage.plan.shape or {}
    if "num_hidden_layers" in shape and "hidden_size" in shape:
        text += f", {shape['num_hidden_layers']} layers {numbers.TIMES} {shape['hidden_size']}"
    return _clip(text, 46)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
