"""What a member's card says of its results, to machines and to people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.build.material import hub_datasets
from kinfolk.card.card import Part, Result, Table
from kinfolk.family.data import FIRST
from kinfolk.family.spec import Family


@dataclass(frozen=True)
class TaskResult:
    """One figure of a task (`kinfolk evaluate`)."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    examples: int | None
    limit: float | None
    shots: int | None
    task_version: str


def scores(family: Family, held_out: Mapping[str, Any]) -> tuple[Result, ...]:
    """The figures of a score on the family's held-out documents, for machines."""
    names = hub_datasets(family, [FIRST])
    dataset = names[0] if len(names) == 1 else family.name
    how = {"context_length": held_out["context_length"], "stride": held_out["stride"]}
    low, high = held_out["bits_per_byte_low"], held_out["bits_per_byte_high"]
    interval = {} if low is None else {"interval": [low, high], "interval_level": 0.9}
    metrics: list[tuple[str, str, dict[str, Any]]] = [
        ("loss", "Loss, nats per token", {}),
        ("perplexity", "Perplexity per token", {}),
        ("bits_per_byte", "Bits per byte", interval),
    ]
    return tuple(
        Result(dataset, f"{family.name}, held-out documents", key, name, held_out[key], {**how, **more})
        for key, name, more in metrics
        if held_out[key] is not None
    )


def score_table(held_out: Mapping[str, Any]) -> Table:
    """Loss, perplexity, bits per byte and their interval, for people."""
    perplexity = "beyond floating point" if held_out["perplexity"] is None else f"{held_out['perplexity']:.3f}"
    low, high = held_out["bits_per_byte_low"], held_out["bits_per_byte_high"]
    interval = "-" if low is None else f"{low:.4f} to {high:.4f}"
    return Table(
        ("loss (nats per token)", "perplexity", "bits per byte", "90 % interval over documents"),
        ((f"{held_out['loss']:.4f}", perplexity, f"{held_out['bits_per_byte']:.4f}", interval),),
    )


def score_sentence(held_out: Mapping[str, Any]) -> str:
    """What a score was measured on, and how."""
    return (
        f"On the family's held-out documents ({held_out['documents']:,} documents, {held_out['bytes']:,} bytes; "
        f"windows of {held_out['context_length']} tokens with a stride of {held_out['stride']}):"
    )


def results_part(held_out: Mapping[str, Any], newest: Mapping[str, Any] | None, tasks: Sequence[TaskResult]) -> Part:
    """Loss and tasks, for people."""
    tables = [score_table(held_out)]
    if newest is not None:
        tables.append(
            Table(
                ("also on", "documents", "bytes", "loss (nats per token)", "bits per byte"),
                (
                    (
                        f"version {newest['version']} of the data",
                        f"{newest['documents']:,}",
                        f"{newest['bytes']:,}",
                        f"{newest['loss']:.4f}",
                        f"{newest['bits_per_byte']:.4f}",
                    ),
                ),
            )
        )
    if tasks:
        rows = tuple(
            (
                f"{each.task} ({each.task_version})" if each.task_version else each.task,
                each.metric,
                f"{each.value:.4f}",
                "-" if each.low is None or each.high is None else f"{each.low:.4f} to {each.high:.4f}",
                "-" if each.shots is None else str(each.shots),
                "-" if each.examples is None else f"{each.examples:,}" + (", limited" if each.limit else ""),
            )
            for each in tasks
        )
        tables.append(Table(("task", "metric", "value", "90 % interval", "shots", "examples"), rows))
    return Part(score_sentence(held_out), tuple(tables))


def task_score(result: TaskResult) -> Result:
    """A figure of a task, for machines."""
    settings: dict[str, Any] = {} if result.examples is None else {"examples": result.examples}
    if result.low is not None and result.high is not None:
        settings["interval"] = [result.low, result.high]
    if result.limit is not None:
        settings["limit"] = result.limit
    if result.shots is not None:
        settings["shots"] = result.shots
    return Result(result.task, result.task, result.metric, result.metric, result.value, settings)
