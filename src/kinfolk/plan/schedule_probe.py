"""A probe of learning-rate schedules: short runs of the smallest member that a schedule law is fitted to.

Per peak there is one trunk that holds its rate, and every run is a decay that leaves it; so a run costs its decay only.
With horizon T the runs of a peak cost T + the sum of share x T over all decays but the shortest; a shorter horizon
leaves the same trunk earlier, and costs its decays. What the trunk loses on the way are points that do not end at a
rate of 0.

Like every plan this is only a tree of stages, and the ordinary executor walks it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family
from kinfolk.plan.costs import Flops, sum_flops
from kinfolk.plan.document import stage_flops
from kinfolk.plan.stages import Continue, DecayShape, Patch, Plan, Rate, Scratch, Source, Stage
from kinfolk.plan.strategies import independent, plan_family

SHARE = 0.05
"""Of the FLOPs of the whole build, that the probe may cost."""
FEWEST_STEPS = 100
"""Of the longest horizon, whatever it costs, if the member has as many: below, the first steps decide."""
TOO_FEW_STEPS = 40
"""A member that trains for less cannot be probed."""
SPREAD = 2.0
"""Peaks lie this factor below and above the recipe's."""
SHORT, LONG, DIVIDE = 0.2, 0.6, 0.4
"""Beside the recipe's own decay share there is a short one, or a long one if the recipe's is below `DIVIDE`."""
LEAST_DECAY = 0.05
"""A recipe that decays over less of its steps, or not at all, is probed with both other shares."""
CHEAP_REPEAT = 0.1
"""The shortest run is repeated with other weights if that costs at most so much of the rest of the probe."""
POINTS = 40
"""Held-out losses over the longest horizon, at most: a law takes every one by itself that is farther than a fiftieth
from the next."""


@dataclass(frozen=True)
class Decay:
    """How a run of the probe ends."""

    share: float
    """Of its horizon."""
    shape: DecayShape = "linear"
    end_ratio: float = 0.0


@dataclass(frozen=True)
class Design:
    """Which runs a probe has: every peak with every decay to every horizon."""

    peaks: tuple[float, ...]
    decays: tuple[Decay, ...]
    horizons: tuple[int, ...]
    """Steps, from the shortest on."""
    warmup_steps: int
    repeated_peak: float | None
    """The peak whose shortest run is trained once more with other weights, for the noise; None for none."""


class Price(TypedDict):
    """What a probe costs beside the build that it is for."""

    flops: Flops
    build_flops: Flops
    share: float
    """Of the build, by matmul FLOPs."""
    steps: int
    runs: int


def own_steps(family: Family) -> int:
    """Steps over which the smallest member's schedule goes: of all its parts, in whole batches."""
    plan = plan_family(family)
    line = plan.lineage(family.members[0].name)
    is_reset = family.patch is not None and family.patch.optimizer == "reset"
    if is_reset and any(isinstance(stage.objective, Patch) for stage in line):
        line = line[-1:]  # both parts have a schedule of their own
    return sum(stage.batches for stage in line)


def design_probe(
    family: Family,
    *,
    peaks: Sequence[float] | None = None,
    decay_shares: Sequence[float] | None = None,
    share: float = SHARE,
) -> Design:
    """The runs that a probe of the family needs.

    Peaks are half the recipe's, the recipe's and twice that. One decay is the recipe's own, so that what would be used
    without a probe is measured; the other is linear to 0 over a fifth of the steps, or over three fifths where the
    recipe's is short. The longest horizon is as long as `share` of the build pays for, at least `FEWEST_STEPS` and at
    most the member's own steps; the other is half of it. KinfolkError for a family that cannot be probed.
    """
    member, own = family.members[0], own_steps(family)
    if member.shape is None:
        raise KinfolkError(
            f"{member.name} has no shape, only a number of parameters: it cannot be trained",
            where="members[0]",
            fix="give every member a shape",
        )
    if member.peak_learning_rate is not None:
        raise KinfolkError(
            f"{member.name} has a peak of its own, which the recipe's would not change",
            where="members[0].peak_learning_rate",
            fix="take it out, and set recipe.peak_learning_rate",
        )
    for name, values, largest in (("--peaks", peaks, 1.0), ("--decay-shares", decay_shares, 0.95)):
        if values is not None and (len(set(values)) < 2 or not all(0 < value <= largest for value in values)):
            raise KinfolkError(
                f"{', '.join(f'{value:g}' for value in values)}: a law needs two different ones",
                where=name,
                fix=f"give two or more, above 0 and up to {largest:g}",
            )
    if own < TOO_FEW_STEPS:
        raise KinfolkError(
            f"{member.name} trains for {own} steps, too few to choose a schedule by",
            where="recipe.schedule",
            fix=f"write a schedule, or train for {TOO_FEW_STEPS} steps or more with fewer recipe.tokens_per_step",
        )
    peak = family.peak_learning_rate(member)
    given = {float(f"{each:g}") for each in peaks or ()}  # stages are called by them
    probed = tuple(sorted(given or (peak / SPREAD, peak, peak * SPREAD)))
    draft = Design(
        peaks=probed,
        decays=_decays(family, decay_shares),
        horizons=(own // 2, own),
        warmup_steps=0,
        repeated_peak=min(probed, key=lambda each: abs(each - peak)),
    )
    affordable = share * _matmul(build_flops(family)) / _matmul(_flops(family, draft)) * own
    longest = min(own, max(FEWEST_STEPS, int(affordable)))
    horizons = (longest // 2, longest)
    warmup = min(round(family.recipe.schedule.warmup_share * longest), horizons[0] // 4)
    found = replace(draft, horizons=horizons, warmup_steps=warmup)
    without = replace(found, repeated_peak=None)
    is_cheap = horizons[0] <= CHEAP_REPEAT * _steps(schedule_probe(smallest_alone(family, longest), without))
    return found if is_cheap else without


def _decays(family: Family, shares: Sequence[float] | None) -> tuple[Decay, ...]:
    schedule = family.recipe.schedule
    own = Decay(schedule.decay_share, schedule.decay_shape, schedule.end_ratio)
    other = SHORT if own.share >= DIVIDE else LONG
    usual = (own.share, other) if own.share >= LEAST_DECAY else (SHORT, LONG)
    return tuple(own if each == own.share else Decay(each) for each in sorted(set(shares or usual)))


def smallest_alone(family: Family, longest: int) -> Family:
    """The smallest member as a family of its own, as a probe trains it: whole batches of tokens, on the first data.

    Patches are left out, as no law of schedules is one of them; the switch comes before the decay.
    """
    recipe: dict[str, Any] = {
        "batch_warmup": None,
        "held_out_every_steps": -(-longest // POINTS),
        "checkpoints": family.recipe.checkpoints.model_copy(update={"keep": 0}),
    }
    if family.recipe.rate_transfer.rule != "none":
        named = {"base": None, "base_shape": family.base_shape}
        recipe["rate_transfer"] = family.recipe.rate_transfer.model_copy(update=named)
    return family.model_copy(
        update={
            "members": family.members[:1],
            "strategy": "independent",
            "patch": None,
            "data": family.data.model_copy(update={"versions": []}),
            "recipe": family.recipe.model_copy(update=recipe),
        }
    )


def schedule_probe(family: Family, design: Design) -> Plan:
    """The stages of a probe of a family of one member, as `smallest_alone` makes it.

    A run whose decay is over the same steps as another's is there once.
    """
    member = independent(family).stages[0]
    seed, stages = family.recipe.seed, list[Stage]()
    for peak in design.peaks:
        stages += _line(member, design, peak, design.horizons, design.decays, Scratch(seed), f"{peak:g}")
    if design.repeated_peak is not None:
        peak, shortest = design.repeated_peak, min(design.decays, key=lambda decay: decay.share)
        again = f"{peak:g}-again"
        stages += _line(member, design, peak, design.horizons[:1], (shortest,), Scratch(seed + 1), again)
    return Plan(family.name, "schedule probe", tuple(stages), is_trial=True)


def _line(
    member: Stage,
    design: Design,
    peak: float,
    horizons: Sequence[int],
    decays: Sequence[Decay],
    source: Source,
    name: str,
) -> list[Stage]:
    """One trunk, cut where decays leave it, and the decays."""
    per_step = member.tokens_per_step

    def stage(name: str, source: Source, steps: int, rate: Rate) -> Stage:
        return replace(member, name=name, source=source, steps=steps, tokens=steps * per_step, rate=rate, member=None)

    leaving: dict[int, dict[str, tuple[int, Decay]]] = {}
    for horizon in horizons:
        for decay in decays:
            steps = min(max(1, round(decay.share * horizon)), horizon - max(1, design.warmup_steps))
            end = f"-to-{decay.end_ratio:g}" if decay.end_ratio else ""
            branch = f"{name}-{horizon}-{decay.shape}-{steps}{end}"
            leaving.setdefault(horizon - steps, {})[branch] = (steps, decay)
    stages: list[Stage] = []
    held = 0
    for until, branches in sorted(leaving.items()):
        rate = Rate(peak, 0 if held else design.warmup_steps, 0, member.rate.decay_shape)
        trunk = stage(f"{name}-held-{until}", source, until - held, rate)
        stages.append(trunk)
        source, held = Continue(trunk.name), until
        for branch, (steps, decay) in branches.items():
            stages.append(stage(branch, source, steps, Rate(peak, 0, steps, decay.shape, decay.end_ratio)))
    return stages


def probe_price(family: Family, design: Design) -> Price:
    """What the probe costs, and as a share of the family's build."""
    plan = schedule_probe(smallest_alone(family, design.horizons[-1]), design)
    flops, whole = _flops(family, design), build_flops(family)
    parents = {stage.parent for stage in plan.stages}
    return {
        "flops": flops,
        "build_flops": whole,
        "share": _matmul(flops) / _matmul(whole),
        "steps": _steps(plan),
        "runs": sum(stage.name not in parents for stage in plan.stages),
    }


def design_document(family: Family, design: Design) -> dict[str, Any]:
    """A design with its price as JSON."""
    return {**asdict(design), "own_steps": own_steps(family), "price": probe_price(family, design)}


def build_flops(family: Family) -> Flops:
    """What building the whole family costs."""
    return sum_flops(stage_flops(family, stage) for stage in plan_family(family).stages)


def _flops(family: Family, design: Design) -> Flops:
    alone = smallest_alone(family, design.horizons[-1])
    return sum_flops(stage_flops(alone, stage) for stage in schedule_probe(alone, design).stages)


def _matmul(flops: Flops) -> float:
    return flops["six_nd"] if flops["matmul"] is None else flops["matmul"]


def _steps(plan: Plan) -> int:
    return sum(stage.steps for stage in plan.stages)
