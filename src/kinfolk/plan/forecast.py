"""What loss the stages of a plan will reach, by a law: every forecast with its interval and what it takes for granted.

A law knows models that were trained alone on tokens. What a stage inherits is turned into tokens by the budget rule of
arXiv 2504.00623, the same by which the plan spares it: a parent's compute, times the family's credit, over 6 N.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kinfolk.errors import KinfolkError
from kinfolk.family.data import FIRST
from kinfolk.family.shapes import parameter_count
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.forecast import TUNING_LIMIT
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.repeated import effective_tokens
from kinfolk.plan.stages import Continue, Grow, Patch, Plan, Stage
from kinfolk.plan.warnings import sizes_of_data, tokens_of

UNDECAYED = 0.04
"""By how much ln loss stands above the law before the rate decays, give or take as much. An assumption, for nobody has
measured it for the family at hand; a build puts what it measures in its place."""

Kind = Literal["member", "undecayed", "patch"]
"""What a stage ends as: a member, which the law is about; a model whose rate has not decayed; or one that reads
patches, whose loss is on no law."""


@dataclass(frozen=True)
class StageForecast:
    """The loss that one stage is expected to reach. Losses are in the law's unit; None where the law cannot say."""

    stage: str
    member: str | None
    """The member that the stage finishes, if it finishes one."""
    kind: Kind
    parameters: float | None
    """N as the law counts it; None for a member whose bare size is counted in another way."""
    tokens: float | None
    """New tokens after which the member alone would be as good, by the budget rule."""
    ratio: float | None
    """Those tokens per parameter."""
    loss: float | None
    low: float | None
    high: float | None
    level: float
    bits_per_byte: float | None
    bits_low: float | None
    bits_high: float | None
    within_fitted_range: bool | None
    cautions: tuple[str, ...]


def forecast_stages(
    family: Family,
    plan: Plan,
    chosen: ChosenLaw,
    unique_tokens: float | None = None,
    version_tokens: Mapping[str, float] | None = None,
    undecayed: float = UNDECAYED,
) -> list[StageForecast]:
    """A forecast for each stage, in the plan's order.

    With `unique_tokens` fewer than a lineage reads, repetitions count for less (arXiv 2305.16264, its term for tokens;
    that for excess parameters is left out, because it is not 0 where nothing repeats). `version_tokens` are those of
    later versions of the data. `undecayed` is how much ln loss stands above the law where a rate does not decay.
    """
    sizes = sizes_of_data(unique_tokens, version_tokens)
    return [_forecast(family, plan, stage, chosen, sizes, undecayed) for stage in plan.stages]


def forecast_members(
    family: Family,
    plan: Plan,
    chosen: ChosenLaw,
    unique_tokens: float | None = None,
    version_tokens: Mapping[str, float] | None = None,
) -> list[StageForecast]:
    """The forecasts of the stages that finish a member."""
    return [found for found in forecast_stages(family, plan, chosen, unique_tokens, version_tokens) if found.member]


def kind_of(stage: Stage) -> Kind:
    """What a stage ends as."""
    if isinstance(stage.objective, Patch) and stage.objective.size > 1:
        return "patch"
    return "member" if stage.member else "undecayed"


def forecast_document(
    family: Family,
    plan: Plan,
    chosen: ChosenLaw,
    unique_tokens: float | None = None,
    version_tokens: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The forecasts as JSON, with all that is to be said of the law."""
    law = chosen.law
    calibration = law.calibration
    stages = [asdict(stage) for stage in forecast_stages(family, plan, chosen, unique_tokens, version_tokens)]
    return {
        "law": {
            "name": law.name,
            "standing": law.standing,
            "source": law.source,
            "counting": law.counting,
            "unit": law.unit,
            "interval_basis": calibration.basis if calibration else None,
            "coverage": calibration.coverage if calibration else None,
            "coverage_runs": calibration.coverage_runs if calibration else 0,
            "bytes_per_token": chosen.bytes_per_token,
            "bytes_basis": chosen.bytes_basis,
        },
        "credit": family.parent_credit,
        "notes": list(chosen.notes),
        "credit_effect": _credit_effect(family, plan, chosen, unique_tokens, version_tokens),
        "stages": stages,
        "members": [stage for stage in stages if stage["member"]],
    }


CREDITS = (1.0, 0.8, 0.5)
"""Shares of a parent's compute that growth may keep, by which forecasts are shown to change: all, about what our own
chains kept (docs/results.md), and a pessimist's."""


def _credit_effect(
    family: Family,
    plan: Plan,
    chosen: ChosenLaw,
    unique_tokens: float | None,
    version_tokens: Mapping[str, float] | None,
) -> list[dict[str, Any]]:
    """What the members of this very plan would reach if growth kept another share of a parent's compute.

    Empty for a plan that grows nothing.
    """
    if not any(isinstance(stage.source, Grow) for stage in plan.stages):
        return []
    found = []
    for credit in sorted({*CREDITS, family.parent_credit}, reverse=True):
        other = family.model_copy(update={"parent_credit": credit})
        members = forecast_members(other, plan, chosen, unique_tokens, version_tokens)
        losses = {each.member: each.loss for each in members}
        found.append({"credit": credit, "losses": losses})
    return found


def _forecast(
    family: Family, plan: Plan, stage: Stage, chosen: ChosenLaw, unique: Mapping[str, float], undecayed: float
) -> StageForecast:
    law, kind = chosen.law, kind_of(stage)
    lineage = plan.lineage(stage.name)
    sizes = [_counted(family, ancestor, law) for ancestor in lineage]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        caution = (
            f"the law counts {law.counting} parameters, and the family's bare sizes are {family.counted_parameters}"
        )
        return _unknown(stage, None, None, caution)
    if kind == "patch":
        return _unknown(stage, known[-1], None, "patch-level loss is on no law")
    size, tokens = known[-1], _worth(family, lineage, known, unique, in_patches=False)
    patched = any(isinstance(part.objective, Patch) and part.objective.size > 1 for part in lineage)
    cautions = []
    if any(isinstance(part.source, Grow) for part in lineage):
        share = "as much as" if family.parent_credit == 1 else f"{family.parent_credit:g} times"
        cautions.append(f"takes a parent's compute to be worth {share} the member's own")
    loss = law.predict(size, tokens)
    low, high = law.interval(size, tokens) or (None, None)
    if patched:
        # A patch is worth at least one token and at most as many as it holds.
        fewest = _worth(family, lineage, known, unique, in_patches=True)
        _, high = law.interval(size, fewest) or (None, None)
        cautions.append("patch tokens are taken for whole tokens, an upper bound; the interval's other end is patches")
    if kind == "undecayed":
        loss *= math.exp(undecayed)
        # From a decay that would gain nothing to one that gains UNDECAYED more than is expected.
        low = None if low is None else low * math.exp(max(0.0, undecayed - UNDECAYED))
        high = None if high is None else high * math.exp(undecayed + UNDECAYED)
        cautions.append("its rate has not decayed, so that its loss is above the law; by how much is an assumption")
    if not math.isfinite(loss):
        raise KinfolkError(f"the law forecasts {loss} for {stage.name}", where=f"law {law.name}", fix="fit it again")
    if law.unit == "nats per token" and family.embedding_rows and loss > math.log(family.embedding_rows):
        caution = f"by the law worse than guessing among {family.embedding_rows:,} tokens"
        return _unknown(stage, size, tokens, f"{caution}: it knows nothing of such small models")
    within = law.forecast(size, tokens).within_fitted_range
    if within is False:
        cautions.append("is outside the range of the law's runs")
    if _share_not_repeated(lineage, unique) < 1:
        cautions.append("repeated tokens count for less (arXiv 2305.16264)")
    if {name for part in lineage for name in part.data} != {FIRST}:
        cautions.append("takes the versions of the data to be alike")
    if tokens / size > TUNING_LIMIT:
        cautions.append(
            f"has more than {TUNING_LIMIT:,.0f} tokens per parameter: fine-tuning has been seen to suffer beyond "
            "(arXiv 2503.19206)"
        )
    bits = [None if value is None else _bits(law, chosen.bytes_per_token, value) for value in (loss, low, high)]
    level = law.calibration.level if law.calibration else 0.9
    return StageForecast(
        stage=stage.name,
        member=stage.member,
        kind=kind,
        parameters=size,
        tokens=tokens,
        ratio=tokens / size,
        loss=loss,
        low=low,
        high=high,
        level=level,
        bits_per_byte=bits[0],
        bits_low=bits[1],
        bits_high=bits[2],
        within_fitted_range=within,
        cautions=tuple(cautions),
    )


def _unknown(stage: Stage, size: float | None, tokens: float | None, caution: str) -> StageForecast:
    ratio = tokens / size if tokens and size else None
    nothing = (None,) * 3
    return StageForecast(
        stage.name,
        stage.member,
        kind_of(stage),
        size,
        tokens,
        ratio,
        *nothing,
        0.9,
        *nothing,
        None,
        cautions=(caution,),
    )


def _worth(
    family: Family, lineage: tuple[Stage, ...], sizes: list[float], unique: Mapping[str, float], in_patches: bool
) -> float:
    """New tokens after which the last stage's model alone would be as good; a patch counts as one, or as it holds."""
    tokens, before = 0.0, sizes[0]
    for part, size in zip(lineage, sizes, strict=True):
        if not isinstance(part.source, Continue):
            tokens *= family.parent_credit * before / size
        tokens += part.positions if in_patches else part.tokens
        before = size
    return tokens * _share_not_repeated(lineage, unique)


def _share_not_repeated(lineage: tuple[Stage, ...], unique: Mapping[str, float]) -> float:
    """What the tokens that a lineage reads are worth, as a share of as many new ones (arXiv 2305.16264).

    All stages that read the same version of the data read on in it; `unique` says what each holds, where it is known.
    """
    read: dict[tuple[str, ...], float] = {}
    for part in lineage:
        read[part.data] = read.get(part.data, 0.0) + part.tokens
    worth = 0.0
    for data, tokens in read.items():
        size = tokens_of(data, unique)
        worth += effective_tokens(tokens, size) if size else tokens
    return worth / total if (total := sum(read.values())) else 1.0


def _counted(family: Family, stage: Stage, law: LossLaw) -> float | None:
    """A stage's N as the law counts it; None where the shape is not known and the family counts otherwise."""
    if law.counting == family.counted_parameters:
        return stage.parameters
    if stage.shape is None:
        return None
    count = parameter_count(stage.shape, family.embedding_rows, family.model.architecture)
    return float(count.total if law.counting == "total" else count.non_embedding)


def _bits(law: LossLaw, bytes_per_token: float | None, loss: float) -> float | None:
    if law.unit == "bits per byte":
        return loss
    if law.unit != "nats per token" or bytes_per_token is None:
        return None
    return loss / math.log(2) / bytes_per_token
