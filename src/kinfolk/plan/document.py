"""A plan as a JSON document: every stage with its costs, both ways of counting named."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kinfolk.family.recipe import Recipe
from kinfolk.family.shapes import parameter_count
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.costs import Flops, matmul_flops_per_token, six_nd, sum_flops
from kinfolk.plan.forecast import forecast_document
from kinfolk.plan.stages import Continue, Grow, Load, Objective, Patch, Plan, Scratch, Source, Stage
from kinfolk.plan.strategies import independent
from kinfolk.plan.version_costs import version_costs
from kinfolk.plan.warnings import longest_reading, sizes_of_data, warnings_about


def plan_document(
    family: Family,
    plan: Plan,
    train_tokens: int | None = None,
    law: ChosenLaw | None = None,
    version_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The plan of a family with its costs: what `kinfolk plan --json` prints and plan.json holds.

    It is compared with each member, and each version of the largest, trained alone at token level. `train_tokens` is
    what the training data holds, where that is known, and `version_tokens` what later versions do. With a `law` the
    loss of every member is forecast.
    """
    sizes = sizes_of_data(train_tokens, version_tokens)
    token_level = family.model_copy(update={"patch": None})
    alone = {stage.member: stage for stage in independent(token_level).stages}
    stages = [_stage_document(family, stage, alone) for stage in plan.stages]
    total = sum_flops(stage["flops"] for stage in stages)
    baseline = sum_flops(stage_flops(family, stage) for stage in alone.values())
    for stage in stages:
        stage["share"] = stage["flops"]["six_nd"] / total["six_nd"]
    return {
        "family": family.name,
        "strategy": plan.strategy,
        "architecture": family.model.architecture,
        "vocab_size": family.embedding_rows,
        "context_length": family.model.context_length,
        "tokens_per_step": family.recipe.tokens_per_step,
        "counted_parameters": family.counted_parameters,
        "patch": _patch_document(family),
        "rate_transfer": _rate_transfer_document(family),
        "recipe": recipe_document(family.recipe),
        "total_flops": total["six_nd"],
        "independent_flops": baseline["six_nd"],
        "total": total,
        "independent": baseline,
        "saving": 1 - total["six_nd"] / baseline["six_nd"],
        "savings": {
            "six_nd": 1 - total["six_nd"] / baseline["six_nd"],
            "matmul": 1 - total["matmul"] / baseline["matmul"] if total["matmul"] and baseline["matmul"] else None,
        },
        "data": {
            "tokens_read": longest_reading(plan),
            "train_tokens": train_tokens,
            "version_tokens": dict(version_tokens or {}),
        },
        "versions": version_costs(family, stages, {name: stage_flops(family, stage) for name, stage in alone.items()}),
        "warnings": warnings_about(family, plan, sizes),
        "forecast": forecast_document(family, plan, law, train_tokens, version_tokens) if law else None,
        "stages": stages,
    }


def stage_flops(family: Family, stage: Stage) -> Flops:
    """What one stage costs, counted both ways."""
    matmul = None
    if stage.shape is not None:
        per_token = matmul_flops_per_token(stage.shape, family.embedding_rows, family.model.context_length)
        matmul = float(per_token * stage.positions)
    return {"six_nd": six_nd(stage.parameters, stage.positions), "matmul": matmul}


def _stage_document(family: Family, stage: Stage, alone: dict[str | None, Stage]) -> dict[str, Any]:
    count = None
    if stage.shape is not None:
        count = parameter_count(stage.shape, family.embedding_rows, family.model.architecture)
    twin = alone.get(stage.member)
    return {
        "name": stage.name,
        "member": stage.member,
        "parent": stage.parent,
        "source": source_document(stage.source),
        "objective": objective_document(stage.objective),
        "data": list(stage.data),
        "shape": stage.shape.model_dump() if stage.shape else None,
        "parameters": {
            "counted": stage.parameters,
            "total": count.total if count else None,
            "non_embedding": count.non_embedding if count else None,
        },
        "tokens": stage.tokens,
        "positions": stage.positions,
        "steps": stage.steps,
        "tokens_per_step": stage.tokens_per_step,
        "rate": asdict(stage.rate),
        "factors": _factors_document(family, stage),
        "batch_warmup": [asdict(stretch) for stretch in stage.batch_warmup],
        "flops": stage_flops(family, stage),
        "alone": {"tokens": twin.tokens, **stage_flops(family, twin)} if twin else None,
    }


def objective_document(objective: Objective) -> dict[str, Any]:
    """What a stage minimises, as JSON."""
    if isinstance(objective, Patch):
        return {"kind": "patch", **asdict(objective)}
    return {"kind": "token"}


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """What is minimised, by which optimizer, and by which rule peaks fall with size, as JSON."""
    fields = {"optimizer", "gradient_clip", "z_loss", "batch_warmup", "peak_rule"}
    return recipe.model_dump(mode="json", include=fields)


def _patch_document(family: Family) -> dict[str, Any] | None:
    """The patch part in both vocabularies: share of the tokens, and share of the positions."""
    patch = family.patch
    if patch is None:
        return None
    shares = {"share": patch.token_share, "step_share": patch.position_share, "cost": patch.cost}
    return {**patch.model_dump(), **shares}


def _rate_transfer_document(family: Family) -> dict[str, Any] | None:
    """The rule, and the shape that rates transfer from."""
    rule, base = family.recipe.rate_transfer.rule, family.base_shape
    if rule == "none":
        return None
    return {"rule": rule, "base_shape": base.model_dump() if base else None}


def _factors_document(family: Family, stage: Stage) -> dict[str, dict[str, float]] | None:
    """What rate transfer makes of a stage's parameters, by the name of their module; None without it."""
    factors = family.factors(stage.shape)
    return None if factors is None else {name: asdict(each) for name, each in factors.items()}


def source_document(source: Source) -> dict[str, Any]:
    """Where a stage starts, as JSON."""
    match source:
        case Scratch(seed):
            return {"kind": "scratch", "seed": seed}
        case Load(folder):
            return {"kind": "load", "folder": folder}
        case Continue(stage, optimizer):
            return {"kind": "continue", "stage": stage, "optimizer": optimizer}
        case Grow(stage, operator, dynamics):
            return {"kind": "grow", "stage": stage, "operator": asdict(operator), "dynamics": asdict(dynamics)}
