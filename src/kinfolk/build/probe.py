"""Choosing a way of growing by trying them: short stages from one checkpoint, compared on held-out text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from kinfolk.build.build import build
from kinfolk.build.run import BuildView, open_run
from kinfolk.errors import KinfolkError
from kinfolk.family.data import LoadedTokenizer
from kinfolk.family.load import LoadedFamily
from kinfolk.family.recipe import Growth, Recipe
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Family, Member, Model
from kinfolk.growth.configs import Changes, child_sizes, read_config
from kinfolk.growth.sizes import sizes_of_config
from kinfolk.plan.probe import probe
from kinfolk.plan.stages import Load, Operator
from kinfolk.train.monitor import read_metrics

WIDTHS: Mapping[str, dict[str, Any]] = {
    "energy_split": {"width": "energy_split"},
    "energy_split-uneven": {"width": "energy_split", "split": "uneven", "noise": 0.0},
    "lemon": {"width": "lemon"},
    "aki": {"width": "aki"},
}
DEPTHS: Mapping[str, dict[str, Any]] = {
    "zero_exit-copied": {"block": "copied"},
    "zero_exit-even": {"placement": "even"},
    "stack": {"depth": "stack"},
    "interpolate": {"depth": "interpolate"},
}
"""What is tried beside the defaults, by name: the fields of `growth` in a family file that differ from them."""

DEFAULT = "default"


@dataclass(frozen=True)
class Candidate:
    """How one way of growing did."""

    name: str
    growth: Growth
    losses: dict[int, float]
    """Held-out loss in nats per token, by step."""

    @property
    def loss(self) -> float:
        """After the last step."""
        return self.losses[max(self.losses)]


def probe_growth(
    loaded: LoadedFamily,
    source: Path,
    changes: Changes,
    steps: int,
    folder: Path,
    view: BuildView,
) -> list[Candidate]:
    """Grow the checkpoint `source` in every way that makes a difference, train each for `steps` steps on the data and
    by the recipe of a family, and rank them, best first.

    `changes` are the sizes that grow, named as in a config. `folder` is a run directory; a probe that was stopped goes
    on in it. Raises KinfolkError for what the family or the checkpoint does not allow.
    """
    source = source.resolve()
    config = read_config(source)
    model = _model_of(config, loaded, str(source))
    parent, child = sizes_of_config(config), child_sizes(config, changes, Operator())
    if child.vocab_size != parent.vocab_size:
        raise KinfolkError(
            "a probe keeps the vocabulary", where="--to: vocab_size", fix="grow the vocabulary without --probe"
        )
    candidates = candidates_between(parent.shape, child.shape)
    if len(candidates) < 2:
        raise KinfolkError("parent and child have the same shape", fix="give a larger shape with --to")
    family = loaded.family
    tokens = float(steps * family.recipe.tokens_per_step)
    members = [
        Member(name="source", shape=parent.shape, tokens=1),
        Member(name="grown", shape=child.shape, tokens=tokens),
    ]
    changed = {
        "members": members,
        "strategy": "progressive",
        "parent_credit": 0.0,
        "tokenizer": LoadedTokenizer(load=str(source)),
        "model": model,
        "data": family.data.model_copy(update={"versions": []}),
        "recipe": _recipe_of(family),
    }
    trial = replace(loaded, family=family.model_copy(update=changed))
    strategy = partial(probe, candidates=candidates, parent=Load(str(source)))
    build(trial, folder, view, strategy)
    run = open_run(trial, folder, strategy)
    found = [
        Candidate(name, growth, _held_out(run.stages / f"grown-{name}" / "metrics.jsonl"))
        for name, growth in candidates.items()
    ]
    return sorted(found, key=lambda candidate: candidate.loss)


def _recipe_of(family: Family) -> Recipe:
    """The family's recipe, with the shape that rates transfer from told without the family's members."""
    transfer = family.recipe.rate_transfer
    if transfer.rule == "none":
        return family.recipe
    named = transfer.model_copy(update={"base": None, "base_shape": family.base_shape})
    return family.recipe.model_copy(update={"rate_transfer": named})


def _model_of(config: PreTrainedConfig, loaded: LoadedFamily, source: str) -> Model:
    """The family's model with what the checkpoint decides; KinfolkError where kinfolk cannot train its kind."""
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in ("llama", "qwen3") or rope.get("rope_type", "default") != "default":
        raise KinfolkError(
            f"a probe trains, and kinfolk trains llama and qwen3 with unscaled rotary positions, not this "
            f"{config.model_type}",
            where=source,
            fix="grow without --probe",
        )
    if "rope_theta" not in rope:
        raise KinfolkError(
            "config.json says no rope_theta, the base of its rotary positions",
            where=source,
            fix="add rope_theta to its rope_parameters, as the model was trained",
        )
    return loaded.family.model.model_copy(
        update={
            "architecture": config.model_type,
            "vocab_size": config.vocab_size,
            "rope_theta": float(rope["rope_theta"]),
            "rms_norm_eps": config.rms_norm_eps,
        }
    )


def candidates_between(parent: Shape, child: Shape) -> dict[str, Growth]:
    """The candidates for a step: the defaults, other ways in width where it grows, and in depth where that does."""
    deeper = child.num_hidden_layers > parent.num_hidden_layers
    wider = child.model_copy(update={"num_hidden_layers": parent.num_hidden_layers}) != parent
    fields = {DEFAULT: dict[str, Any]()} | (dict(WIDTHS) if wider else {}) | (dict(DEPTHS) if deeper else {})
    return {name: Growth.model_validate(each) for name, each in fields.items()}


def _held_out(metrics: Path) -> dict[int, float]:
    return {record["step"]: record["held_out_loss"] for record in read_metrics(metrics) if "held_out_loss" in record}
