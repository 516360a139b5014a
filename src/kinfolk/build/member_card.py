"""The model card of a member, from what the run has on record of it.

A build writes it without times, commands and machines, and without what depends on members that may be added later, so
that the same family gives the same bytes; `kinfolk.build.renew` adds these, with the results of tasks and the names of
repositories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfolk.build.card_results import TaskResult, results_part, scores, task_score
from kinfolk.build.material import hub_datasets, material_part
from kinfolk.build.run import Run, data_counts
from kinfolk.card.card import Card, Facts, Part, Table, load_code
from kinfolk.data.versions import joined
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Grow, Load, Plan, Stage


@dataclass(frozen=True)
class BuildRecord:
    """What differs from one build of a family to the next."""

    seconds: float
    """Training time of the stages that the member comes from."""
    machines: tuple[str, ...]
    commands: tuple[str, ...]
    software: tuple[str, ...]


def member_card(
    run: Run,
    stage: Stage,
    held_out: Mapping[str, Any],
    newest: Mapping[str, Any] | None = None,
    *,
    record: BuildRecord | None = None,
    tasks: Sequence[TaskResult] = (),
    repository: str | None = None,
    bases: Sequence[str] = (),
) -> Card:
    """The card of the member that `stage` finishes.

    `held_out` is its score on the family's held-out part, and `newest` that on a later version's. `repository` is the
    name that it gets on the hub, and `bases` those of the members that it was grown from.
    """
    assert stage.member is not None
    family, document = run.family, run.document
    entries = {entry["name"]: entry for entry in document["stages"]}
    entry, shape = entries[stage.name], entries[stage.name]["shape"]
    lineage = [entries[ancestor.name] for ancestor in run.plan.lineage(stage.name)]
    stated = family.card
    architecture = family.model.architecture
    return Card(
        title=stage.member,
        summary=f"A member of the family **{family.name}**, built with kinfolk by the strategy *{run.plan.strategy}*. "
        "A base language model, not tuned for instructions.",
        tags=("kinfolk", architecture),
        facts=Facts(stated.license, stated.license_name, stated.license_link, tuple(stated.languages)),
        datasets=hub_datasets(family, versions_of(run.plan, stage)),
        bases=tuple(bases),
        relation="finetune",
        properties=(
            (
                "architecture",
                f"{architecture}, {shape['num_hidden_layers']} layers, hidden size {shape['hidden_size']}, "
                f"{shape['num_attention_heads']} query and {shape['num_key_value_heads']} KV heads of size "
                f"{shape['head_dim']}, feed-forward {shape['intermediate_size']}, "
                f"{'tied' if shape['tie_word_embeddings'] else 'untied'} embeddings",
            ),
            (
                "parameters",
                f"{entry['parameters']['total']:,} ({entry['parameters']['non_embedding']:,} without embeddings)",
            ),
            (
                "vocabulary, context",
                f"{document['vocab_size']:,} entries, {document['context_length']:,} tokens",
            ),
        ),
        measured=(*scores(family, held_out), *(task_score(each) for each in tasks)),
        results=results_part(held_out, newest, tasks),
        lineage=_lineage(run, stage, lineage),
        data=material_part(family, versions_of(run.plan, stage), run.folder / "data", _counts(run, stage)),
        compute=_compute(entry, lineage, document, record),
        limits=_limits(family, document, lineage, tasks, record is not None),
        usage=load_code(repository),
        built=_built(run, record),
    )


def versions_of(plan: Plan, stage: Stage) -> list[str]:
    """Names of the versions of the data that a stage's lineage has read, in that order."""
    return list(dict.fromkeys(name for part in plan.lineage(stage.name) for name in part.data))


def _counts(run: Run, stage: Stage) -> dict[str, int]:
    return data_counts(joined(run.stores, versions_of(run.plan, stage)))


def _lineage(run: Run, stage: Stage, lineage: Sequence[Mapping[str, Any]]) -> Part:
    stages = Table(
        ("stage", "from", "tokens", "peak learning rate", "6ND FLOPs", "matmul FLOPs"),
        tuple(_lineage_row(run.plan.stage(entry["name"]), entry) for entry in lineage),
    )
    grown = {event["stage"]: event for event in run.ledger.events("grown")}
    proofs = [(entry["name"], grown[entry["name"]]) for entry in lineage if entry["name"] in grown]
    if not proofs:
        return Part("", (stages,))
    names = ("stage", "growth", "claims to preserve", "largest change of a logit, float64", "KL, float64", "in float32")
    rows = tuple(_proof_row(name, event) for name, event in proofs)
    return Part(
        "Every growth was verified on held-out text: the grown model beside the one that it was grown from.",
        (stages, Table(names, rows)),
    )


def _lineage_row(stage: Stage, entry: Mapping[str, Any]) -> tuple[str, ...]:
    if stage.parent:
        origin = f"{'grown from' if isinstance(stage.source, Grow) else 'continues'} {stage.parent}"
    else:
        origin = f"checkpoint {Path(stage.source.folder).name}" if isinstance(stage.source, Load) else "random weights"
    return (
        stage.name,
        origin,
        f"{stage.tokens:,}",
        f"{stage.rate.peak:.4g}",
        f"{entry['flops']['six_nd']:.4g}",
        f"{entry['flops']['matmul']:.4g}",
    )


def _proof_row(name: str, event: Mapping[str, Any]) -> tuple[str, ...]:
    proof = event["verification"]
    double, single = proof["float64"], proof["float32"]
    return (
        name,
        event["description"],
        ("yes, verified" if proof["passed"] else "yes, and failed") if proof["claims_preservation"] else "no",
        f"{double['max_abs_logit_difference']:.2e}",
        f"{double['kl']:.2e}",
        f"{single['max_abs_logit_difference']:.2e}",
    )


def _compute(
    entry: Mapping[str, Any],
    lineage: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    record: BuildRecord | None,
) -> Part:
    def row(what: str, flops: Mapping[str, Any], tokens: str) -> tuple[str, ...]:
        matmul = "-" if flops["matmul"] is None else f"{flops['matmul']:.4g}"
        return (what, f"{flops['six_nd']:.4g}", matmul, tokens)

    own = {key: sum(each["flops"][key] for each in lineage) for key in ("six_nd", "matmul")}
    rows = [row("all stages of this lineage", own, f"{sum(each['tokens'] for each in lineage):,}")]
    if entry["alone"]:
        rows.append(row("this member trained alone, by the plan", entry["alone"], f"{entry['alone']['tokens']:,}"))
    text = "Training FLOPs, counted as 6ND and as the matrix products of the real model."
    headings = ("", "6ND FLOPs", "matmul FLOPs", "tokens")
    if record is None:
        return Part(text, (Table(headings, tuple(rows)),))
    rows.append(row("the whole family", document["total"], ""))
    rows.append(row("every member of it trained alone", document["independent"], ""))
    facts = (
        ("training time of this lineage", f"{record.seconds:,.1f} s"),
        ("hardware", "; ".join(record.machines) or "not on record"),
    )
    return Part(
        f"{text} Members of one family share stages; the family as a whole {_saved(document['saving'])} training each "
        "member alone (6ND).",
        (Table(headings, tuple(rows)), Table(("", ""), facts)),
    )


def _saved(saving: float) -> str:
    return f"costs {saving:.1%} less than" if saving >= 0 else f"costs {-saving:.1%} more than"


def _limits(
    family: Family,
    document: Mapping[str, Any],
    lineage: Sequence[Mapping[str, Any]],
    tasks: Sequence[TaskResult],
    with_warnings: bool,
) -> tuple[str, ...]:
    counted = lineage[-1]["parameters"]["counted"]
    read = sum(each["tokens"] for each in lineage)
    languages = ", ".join(family.card.languages)
    found = [
        "A base model: it continues text, follows no instructions, and nothing was done to keep it from harmful text.",
        f"Its lineage read {read:,} tokens, {read / counted:.1f} for each of its parameters; it has seen no text "
        f"longer than {document['context_length']:,} tokens.",
        "It was measured on held-out documents of its own kind of text"
        + (" and on the tasks above; nothing else is known." if tasks else ", and on nothing else."),
        f"Languages of the training text, as the family file states them: {languages}."
        if languages
        else "The family file does not state the languages of the training text.",
    ]
    if family.card.license is None:
        found.append("The family file states no licence; ask whoever gave you this model.")
    if with_warnings:
        found += [f"The plan warned: {warning}." for warning in document["warnings"]]
    return tuple(found)


def _built(run: Run, record: BuildRecord | None) -> Part:
    recipe = run.family.recipe
    text = f"Seed {recipe.seed}, {recipe.tokens_per_step:,} tokens per step. "
    if record is None:
        return Part(text + "`kinfolk build family.yaml`, with the family file of the run directory.")
    commands = "\n".join(record.commands)
    return Part(f"{text}Built with {'; '.join(record.software)}:\n\n```\n{commands}\n```")
