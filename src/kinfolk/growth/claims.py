"""What an operator promises between two sizes, and what cannot grow into what."""

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import MisfitError
from kinfolk.family.shapes import Shape, growth_misfits
from kinfolk.growth.depth import preserves_function
from kinfolk.growth.sizes import Sizes
from kinfolk.growth.tables import Table, table_of
from kinfolk.plan.stages import Grow, Operator, Plan

_SCALED_BY_FREQUENCY = ("default", "linear", "llama3")
"""Types of rotary positions that scale a pair by its frequency alone, which it keeps when the head size grows."""


def claims_preservation(
    operator: Operator, parent: Shape | Sizes, child: Shape | Sizes, architecture: str = "llama"
) -> bool:
    """Whether the operator claims that the child computes the parent's function (up to rounding)."""
    return not what_breaks(operator, parent, child, architecture)


def what_breaks(
    operator: Operator, parent: Shape | Sizes, child: Shape | Sizes, architecture: str = "llama"
) -> list[str]:
    """Why the child does not compute the parent's function, a phrase each; empty where it does.

    A grown vocabulary is no break: the logits of the old tokens stay. New tokens have the mean of their rows, so each
    has the mean of their logits (before any soft cap) and takes, by Jensen's inequality, no more of the softmax than an
    average old token.
    """
    before, after = Sizes.of(parent), Sizes.of(child)
    old, new = before.shape, after.shape
    reasons = []
    if not preserves_function(operator.depth, old.num_hidden_layers, new.num_hidden_layers):
        reasons.append(f"{operator.depth} repeats layers with everything in them")
    if operator.width == "aki" and old.num_hidden_layers > 1 and _adds_outputs(old, new):
        reasons.append("aki takes new units from the next layer")
    if operator.width in ("fpi", "aki") and new.hidden_size != old.hidden_size:
        reasons.append(
            f"{operator.width} copies hidden units unevenly and the norms unscaled, so their mean square changes"
        )
    if before.experts and after.experts and before.experts_per_token and after.experts_per_token:
        ratio, rest = divmod(after.experts, before.experts)
        if rest or after.experts_per_token != ratio * before.experts_per_token:
            reasons.append(
                f"{after.experts} experts with {after.experts_per_token} per token: exact needs a multiple of "
                f"{before.experts} experts and the same multiple of {before.experts_per_token} per token"
            )
    return reasons


def obstacles(
    operator: Operator, parent: Shape | Sizes, child: Shape | Sizes, architecture: str = "llama"
) -> list[MisfitError]:
    """What keeps `parent` from growing into `child` by this operator, each with the field and the nearest way out."""
    before, after = Sizes.of(parent), Sizes.of(child)
    table = table_of(architecture)
    found = growth_misfits(before.shape, after.shape)
    found += _norm_obstacles(operator, before.shape, after.shape, table)
    found += _head_obstacles(before, after, architecture, table)
    for field, old, new in (
        ("vocab_size", before.vocab_size, after.vocab_size),
        ("num_local_experts", before.experts, after.experts),
        ("num_experts_per_tok", before.experts_per_token, after.experts_per_token),
    ):
        if old and new and new < old:
            found.append(
                MisfitError(f"{field} cannot shrink from {old} to {new}", field=field, fix=f"use {old} or more")
            )
    if after.experts and after.experts_per_token and after.experts_per_token > after.experts:
        found.append(
            MisfitError(
                f"{after.experts_per_token} experts per token of {after.experts}",
                field="num_experts_per_tok",
                fix=f"use {after.experts} or fewer",
            )
        )
    if not table.has_experts and (after.experts or after.experts_per_token):
        found.append(
            MisfitError(f"{architecture} has no experts", field="num_local_experts", fix="leave the field out")
        )
    return found


def refuse_obstacles(operator: Operator, parent: Shape | Sizes, child: Shape | Sizes, architecture: str) -> None:
    """Raise KinfolkError where there are obstacles."""
    found = obstacles(operator, parent, child, architecture)
    if found:
        raise KinfolkError("; ".join(str(misfit) for misfit in found), where="growth")


def refuse_plan(plan: Plan, architecture: str) -> None:
    """Raise KinfolkError where a growth of a plan cannot be done; nothing has been computed yet."""
    for stage in plan.stages:
        if isinstance(stage.source, Grow) and stage.shape:
            parent = plan.stage(stage.source.stage)
            if parent.shape and (found := obstacles(stage.source.operator, parent.shape, stage.shape, architecture)):
                raise KinfolkError(
                    f"{stage.name} cannot grow from {parent.name}: {found[0].problem}",
                    where=f"members: {stage.name}.shape.{found[0].field}",
                    fix=found[0].fix,
                )


def describe(operator: Operator, parent: Shape | Sizes, child: Shape | Sizes) -> str:
    """One line on what the operator does between these sizes."""
    before, after = Sizes.of(parent), Sizes.of(child)
    old, new = before.shape, after.shape
    changes = [
        f"{label} {one} -> {other}"
        for label, one, other in (
            ("hidden", old.hidden_size, new.hidden_size),
            ("query heads", old.num_attention_heads, new.num_attention_heads),
            ("KV heads", old.num_key_value_heads, new.num_key_value_heads),
            ("head size", old.head_dim, new.head_dim),
            ("feed-forward", old.intermediate_size, new.intermediate_size),
            ("experts", before.experts, after.experts),
            ("vocabulary", before.vocab_size, after.vocab_size),
        )
        if one != other
    ]
    if old.tie_word_embeddings and not new.tie_word_embeddings:
        changes.append("embeddings untied")
    noise = f"noise {operator.noise:g}" if operator.snr is None else f"noise at {operator.snr:g} dB"
    split = ", uneven shares" if operator.split == "uneven" else ""
    parts = [f"{operator.width} ({', '.join(changes)}; {noise}{split}, seed {operator.seed})"] if changes else []
    if old.num_hidden_layers != new.num_hidden_layers:
        where = {"top": "", "even": " evenly"}.get(str(operator.placement), f" at {operator.placement}")
        where = where if operator.depth == "zero_exit" else ""
        parts.append(f"{operator.depth}{where} (layers {old.num_hidden_layers} -> {new.num_hidden_layers})")
    return ", then ".join(parts) or "same shape: a copy"


def _adds_outputs(old: Shape, new: Shape) -> bool:
    """Whether layers compute units that copy others; the new part of a larger head copies nothing."""
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return any(getattr(old, size) != getattr(new, size) for size in sizes)


def _norm_obstacles(operator: Operator, old: Shape, new: Shape, table: Table) -> list[MisfitError]:
    whole = max(1, round(new.hidden_size / old.hidden_size)) * old.hidden_size
    if new.hidden_size < old.hidden_size or whole == new.hidden_size:
        return []
    if operator.width == "tile":
        return [
            MisfitError(
                f"tile copies hidden units a whole number of times, and {new.hidden_size} is no multiple of "
                f"{old.hidden_size}",
                field="hidden_size",
                fix=f"use hidden_size {whole}, or energy_split",
            )
        ]
    if operator.width == "energy_split" and table.norm == "layer":
        return [
            MisfitError(
                f"LayerNorm subtracts the mean, which uneven copies of hidden units change: {new.hidden_size} is no "
                f"multiple of {old.hidden_size}",
                field="hidden_size",
                fix=f"use hidden_size {whole}, or lemon or zero_pad, which are exact at any ratio",
            )
        ]
    return []


def _head_obstacles(before: Sizes, after: Sizes, architecture: str, table: Table) -> list[MisfitError]:
    found = []
    old, new = before.shape, after.shape
    reason = _head_size_obstacle(before, table)
    if new.head_dim != old.head_dim and reason:
        found.append(
            MisfitError(
                f"the head size of {architecture} cannot grow: {reason}",
                field="head_dim",
                fix=f"keep head_dim {old.head_dim} and change the number of heads",
            )
        )
    if not table.head_size_is_free and new.head_dim * new.num_attention_heads != new.hidden_size:
        found.append(
            MisfitError(
                f"{architecture} has no head size of its own: {new.num_attention_heads} heads of {new.head_dim} need a "
                f"hidden size of {new.head_dim * new.num_attention_heads}, not {new.hidden_size}",
                field="hidden_size",
                fix=f"use hidden_size {new.head_dim * new.num_attention_heads}, or other heads",
            )
        )
    if not table.head_size_is_free and new.num_key_value_heads != new.num_attention_heads:
        found.append(
            MisfitError(
                f"{architecture} has as many KV heads as query heads",
                field="num_key_value_heads",
                fix=f"use {new.num_attention_heads}",
            )
        )
    return found


def _head_size_obstacle(sizes: Sizes, table: Table) -> str:
    """Why the head size cannot grow; empty where it can."""
    if table.head_size is None:
        return table.head_size_obstacle
    if sizes.rotated_share != 1:
        return "rotary positions turn a part of every head only"
    if sizes.rope_type not in _SCALED_BY_FREQUENCY:
        return f"rotary positions of the type {sizes.rope_type} scale a pair by its number, which changes"
    return ""
