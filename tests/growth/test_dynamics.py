"""Policies of training on after a growth, through the trainer's own update, in float64."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import empty_model, gradients, load, random_model, random_tokens, shape
from torch import Tensor

from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.growth.dynamics import Rewarming, StageRates, spread, stage_rates
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.growth.grown_axes import GrownAxes
from kinfolk.growth.names import axes_of
from kinfolk.growth.optimizer import grow_optimizer
from kinfolk.plan.stages import Continue, Dynamics, Grow, Operator, Plan, Rate, Scratch, Source, Stage, Token
from kinfolk.train.optimizer import MOMENTS, make_optimizer, optimizer_tensors
from kinfolk.train.update import make_update

PLAIN = Operator(noise=0.0)
INHERIT = Dynamics(rates="inherit")
ASYMMETRIC = Dynamics(optimizer="asymmetric")
REWARM = Dynamics(optimizer="asymmetric", rates="rewarm_new", rewarm_steps=6)
PARENT = shape()
CHILD = shape(hidden=22, heads=9, groups=3, ffn=31)
DOUBLE = shape(hidden=32, heads=8, groups=4, ffn=48)
RATE = 3e-3


def stage(name: str, shape: Shape, source: Source, steps: int) -> Stage:
    return Stage(name, shape, 1.0, source, Token(), steps, steps, Rate(RATE, 0, 0, "linear"))


def chain(shapes: Sequence[Shape], steps: int, dynamics: Dynamics, operator: Operator = PLAIN) -> Plan:
    """Stages 0, 1, ... of `steps` steps, each grown from the one before."""
    stages = [stage("0", shapes[0], Scratch(0), steps)]
    for index, each in enumerate(shapes[1:], 1):
        stages.append(stage(str(index), each, Grow(str(index - 1), operator, dynamics), steps))
    return Plan("tiny", "chain", tuple(stages))


class Trainee:
    """A float64 model with its optimizer, trained as a stage of a plan is."""

    def __init__(self, model: Any, rates: StageRates | None = None, architecture: Any = "llama") -> None:
        self.model, self.architecture = model, architecture
        self.optimizer = make_optimizer(model, Optimizer())
        self.tensors = optimizer_tensors(model, self.optimizer)
        self._update = make_update(model, self.optimizer, rates)

    def train(self, steps: int, first: int = 0, seed: int = 0) -> None:
        for step in range(first, first + steps):
            gradients(self.model, random_tokens(seed=seed + step))
            self._update(RATE, step)

    def push(self, step: int, seed: int = 0) -> None:
        """One update by gradients that depend on nothing but the parameter's name and the seed."""
        for name, parameter in self.model.named_parameters():
            generator = torch.Generator().manual_seed(hash_of(f"{seed} {step} {name}"))
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self._update(RATE, step)

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def part(self, key: str) -> dict[str, Tensor]:
        return {name: self.tensors[f"{key}.{name}"] for name, _ in self.model.named_parameters()}

    def grown(self, plan: Plan, name: str, rates: Any = stage_rates) -> "Trainee":
        """What the stage called `name` starts from, grown from this model."""
        parent, child = plan.lineage(name)[-2:]
        assert isinstance(child.source, Grow) and parent.shape is not None and child.shape is not None
        operator, dynamics = child.source.operator, child.source.dynamics
        weights = grow_weights(self.weights(), self.architecture, parent.shape, child.shape, operator)
        keys = (*MOMENTS, "step")
        state = grow_optimizer(
            *(self.part(key) for key in keys), self.architecture, parent.shape, child.shape, operator, dynamics
        )
        model = load(empty_model(self.architecture, child.shape), weights)
        twin = Trainee(model, rates(plan, name, self.architecture, weights), self.architecture)
        for key, values in zip(keys, state, strict=True):
            for parameter, value in values.items():
                twin.tensors[f"{key}.{parameter}"].copy_(value)
        return twin

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(random_tokens(4, 11, seed=99)).logits


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def distance(one: Trainee, other: Trainee) -> float:
    return float((one.logits() - other.logits()).abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("architecture", "child"), [("llama", CHILD), ("qwen3", DOUBLE)])
def test_a_twin_repeats_its_parent_for_thirty_steps(architecture: Any, child: Shape, tied: bool) -> None:
    """Growth spec, section 9, test 8: without noise, under `inherit` and `carry`; under `uniform` it must not."""
    shapes = [each.model_copy(update={"tie_word_embeddings": tied}) for each in (PARENT, child)]
    model = Trainee(random_model(architecture, shapes[0]), architecture=architecture)
    model.train(5)
    start = model.logits()
    twins = [model.grown(chain(shapes, 5, Dynamics(rates=rates)), "1") for rates in ("inherit", "uniform")]
    for each in (model, *twins):
        each.train(30, seed=5)
    assert (model.logits() - start).abs().max() > 0.5
    same, other = (distance(model, twin) for twin in twins)
    assert same < 1e-11
    assert other > 0.5


def test_a_chain_of_twins_repeats_the_first() -> None:
    """Factors multiply along the lineage, and a stage that only continues keeps them."""
    shapes = (PARENT, CHILD, shape(hidden=40, heads=18, groups=6, ffn=50))
    plan = chain(shapes, 4, INHERIT)
    model = Trainee(random_model("llama", PARENT))
    model.train(4)
    twin = model
    for name in ("1", "2"):
        twin = twin.grown(plan, name)
        for each in (model, twin):
            each.train(8, seed=10 * int(name))
    assert distance(model, twin) < 1e-11

    branch = replace(plan.stage("2"), name="branch", source=Continue("2"))
    plan = replace(plan, stages=(*plan.stages, branch))
    names = twin.weights()
    here, there = (stage_rates(plan, name, "llama", names) for name in ("2", "branch"))
    assert here is not None and there is not None
    name = "model.layers.1.mlp.down_proj.weight"
    for one, other in zip(here.coordinates[name].value, there.coordinates[name].value, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_what_a_child_unties_begins_afresh() -> None:
    """The parent's one matrix had the sum of two gradients, which nothing tells apart; all else is carried."""
    model = Trainee(random_model("llama", PARENT))
    model.train(3)
    plan = chain((PARENT, CHILD.model_copy(update={"tie_word_embeddings": False})), 3, INHERIT)
    untied, head = {"model.embed_tokens.weight", "lm_head.weight"}, "lm_head.weight"
    grown = model.grown(plan, "1")
    assert head in grown.weights() and head not in model.weights()
    for name in grown.weights():
        began = [grown.tensors[f"{key}.{name}"] for key in (*MOMENTS, "step")]
        assert all(bool(tensor.any()) == (name not in untied) for tensor in began), name
    assert (grown.logits() - model.logits()).abs().max() < 1e-12
    grown.train(2, seed=3)
    assert not torch.equal(grown.weights()[head], grown.weights()["model.embed_tokens.weight"])


@pytest.mark.parametrize("child", [CHILD, DOUBLE])
def test_growing_and_an_adam_step_commute(child: Shape) -> None:
    """Growth spec, section 9, test 7: weights, moments and counts."""
    plan, model = chain((PARENT, child), 3, INHERIT), Trainee(random_model("llama", PARENT))
    model.train(3)
    stepped = model.grown(plan, "1")
    stepped.train(1, seed=3)
    model.train(1, first=3)
    grown = model.grown(plan, "1")
    for name, wanted in grown.weights().items():
        assert (stepped.weights()[name] - wanted).abs().max() < 1e-13, name
    for name, wanted in grown.tensors.items():
        assert (stepped.tensors[name] - wanted).abs().max() <= 1e-12 * wanted.abs().max(), name


def test_other_rates_end_the_inheritance() -> None:
    shapes = (PARENT, CHILD, shape(hidden=40, heads=18, groups=6, ffn=50))
    plan = chain(shapes, 4, INHERIT)
    names = random_model("llama", shapes[2]).state_dict()
    first, second, third = plan.stages
    assert isinstance(second.source, Grow)
    mixed = replace(plan, stages=(first, replace(second, source=Grow("0", PLAIN, Dynamics())), third))
    alone = replace(plan, stages=(replace(second, source=Scratch(0)), third))
    assert stage_rates(mixed, "1", "llama", names) is None
    from_uniform, from_scratch = (stage_rates(each, "2", "llama", names) for each in (mixed, alone))
    assert from_uniform is not None and from_scratch is not None
    for name, coordinates in from_uniform.coordinates.items():
        for one, other in zip(coordinates.value, from_scratch.coordinates[name].value, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_a_new_block_has_the_factor_one_and_a_stacked_one_that_of_its_source() -> None:
    child = CHILD.model_copy(update={"num_hidden_layers": 3})
    for depth in ("zero_exit", "stack"):
        plan = chain((PARENT, child), 1, INHERIT, Operator(noise=0.0, depth=depth))
        rates = stage_rates(plan, "1", "llama", empty_weights(child))
        assert rates is not None
        for name, new in rates.coordinates.items():
            if "layers.2." in name and depth == "zero_exit":
                assert new.is_plain
            elif "layers.2." in name:
                source = rates.coordinates[name.replace("layers.2.", "layers.0.")]
                for vectors, wanted in ((new.value, source.value), (new.gradient, source.gradient)):
                    assert len(spread(vectors)) == len(spread(wanted))
                    assert all(torch.equal(*each) for each in zip(spread(vectors), spread(wanted), strict=True))


def labels(parent: Shape, child: Shape, names: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every coordinate of the child, the number of the parent's coordinate that it copies (no new layers)."""
    width = GrownAxes(parent, child, PLAIN, "llama")
    found = {}
    for name, tensor in names.items():
        numbers = torch.arange(tensor.numel()).view(tensor.shape)
        for dimension, axis in enumerate(axes_of(name, "llama")[0]):
            growth = width.axis(axis)
            numbers = numbers if growth is None else numbers.index_select(dimension, growth.index)
        found[name] = numbers
    return found


def is_first(numbers: Tensor) -> Tensor:
    """Whether a coordinate is the first, row by row, with its number."""
    seen: set[int] = set()
    marks = [not (number in seen or seen.add(number)) for number in numbers.flatten().tolist()]
    return torch.tensor(marks).view(numbers.shape)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_factors_are_those_of_the_growth_itself(data: st.DataObject) -> None:
    """s is what growth makes of ones, g what it makes of moments of one, and new is what is no first copy."""
    size = st.integers(1, 3)
    groups, slots, hidden, ffn = data.draw(size), data.draw(size), data.draw(st.integers(1, 8)), data.draw(size)
    more_groups, more_slots = groups + data.draw(st.integers(0, 4)), slots + data.draw(st.integers(0, 4))
    parent = shape(hidden, groups * slots, groups, ffn, head_dim=2, tied=data.draw(st.booleans()))
    child = shape(
        hidden + data.draw(st.integers(0, 9)),
        more_groups * more_slots,
        more_groups,
        ffn + data.draw(st.integers(0, 9)),
        head_dim=2,
        tied=parent.tie_word_embeddings,
    )
    ones = {name: torch.ones_like(each) for name, each in empty_model("llama", parent).named_parameters()}
    value = grow_weights(ones, "llama", parent, child, PLAIN)
    gradient, _ = grow_moments(ones, ones, "llama", parent, child, PLAIN)
    numbers = labels(parent, child, ones)
    inherited = stage_rates(chain((parent, child), 1, INHERIT), "1", "llama", value)
    rewarmed = stage_rates(chain((parent, child), 1, REWARM), "1", "llama", value)
    if parent == child:
        assert inherited is None and rewarmed is None
        return
    for name in value:
        full = torch.ones_like(value[name])
        if inherited is not None:
            coordinates = inherited.coordinates[name]
            for vectors, wanted in ((coordinates.value, value), (coordinates.gradient, gradient)):
                assert torch.allclose(math.prod(spread(vectors), start=full), wanted[name], rtol=1e-14, atol=0), name
        assert rewarmed is not None
        is_old = math.prod(spread(rewarmed.coordinates[name].is_old), start=full)
        assert torch.equal(is_old == 1, is_first(numbers[name])), name


def test_new_coordinates_are_corrected_by_their_own_age() -> None:
    """Each coordinate of a chain of asymmetric resets moves as that of a chain that resets or carries all of them."""
    shapes = (PARENT, CHILD, shape(hidden=40, heads=18, groups=6, ffn=50))

    def moved(first: Any, second: Any) -> dict[str, Tensor]:
        plan = chain(shapes, 3, Dynamics())
        zero, one, two = plan.stages
        one = replace(one, source=Grow("0", PLAIN, Dynamics(optimizer=first)))
        two = replace(two, source=Grow("1", PLAIN, Dynamics(optimizer=second)))
        plan = replace(plan, stages=(zero, one, two))
        trainee = Trainee(random_model("llama", PARENT))
        for index in range(3):
            trainee = trainee.grown(plan, str(index)) if index else trainee
            for group in trainee.optimizer.param_groups:
                group["weight_decay"] = 0.0
            before = trainee.weights()
            for step in range(3):
                trainee.push(step, seed=index)
        return {name: after - before[name] for name, after in trainee.weights().items()}

    found = moved("asymmetric", "asymmetric")
    carried, in_between, fresh = moved("carry", "carry"), moved("reset", "carry"), moved("carry", "reset")
    older = {name: is_first(each) for name, each in labels(*shapes[:2], empty_weights(shapes[0])).items()}
    numbers = labels(*shapes[1:], empty_weights(shapes[1]))
    for name, change in found.items():
        is_old, from_old = is_first(numbers[name]), older[name].flatten()[numbers[name]]
        wanted = torch.where(is_old, torch.where(from_old, carried[name], in_between[name]), fresh[name])
        assert (change - wanted).abs().max() < 1e-13, name
    name = "model.layers.0.mlp.up_proj.weight"
    assert (carried[name] - fresh[name]).abs().max() > 1e-3 and (carried[name] - in_between[name]).abs().max() > 1e-4


def empty_weights(shape: Shape) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in empty_model("llama", shape).named_parameters()}


@pytest.mark.parametrize("width", ["lemon", "zero_pad"])
def test_carried_moments_of_what_is_no_copy_begin_afresh(width: Any) -> None:
    """Drawn and silent units have no moments to carry: they move as after a reset, all others as AdamW has it."""
    model = Trainee(random_model("llama", PARENT))
    for step in range(4):
        model.push(step)

    def changes(optimizer: Any, rates: Any = stage_rates) -> dict[str, Tensor]:
        plan = chain((PARENT, CHILD), 4, Dynamics(optimizer), Operator(width=width, noise=0.0))
        twin = model.grown(plan, "1", rates)
        start = twin.weights()
        twin.push(0)
        return {name: after - start[name] for name, after in twin.weights().items()}

    found, fresh = changes("carry"), changes("reset")
    adamw = changes("carry", rates=lambda *_: None)
    moments = model.grown(chain((PARENT, CHILD), 4, Dynamics(), Operator(width=width, noise=0.0)), "1").part(
        "exp_avg_sq"
    )
    for name, change in found.items():
        wanted = torch.where(moments[name] > 0, adamw[name], fresh[name])
        assert (change - wanted).abs().max() < 1e-14, name
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (moments[name] == 0).any() and (adamw[name] - fresh[name]).abs().max() > 0.5 * RATE


@pytest.mark.parametrize("width", ["energy_split", "tile", "fpi", "aki", "lemon", "zero_pad"])
@pytest.mark.parametrize("depth", ["zero_exit", "stack", "interpolate", "middle"])
def test_every_operator_trains_on_under_every_policy(width: Any, depth: Any) -> None:
    """No factor is zero or infinite: every coordinate that has a gradient moves, by a bounded step."""
    child = (DOUBLE if width == "tile" else CHILD).model_copy(update={"num_hidden_layers": 3})
    operator, model = Operator(width=width, depth=depth), Trainee(random_model("llama", PARENT))
    model.push(0)
    for dynamics in (Dynamics(), INHERIT, ASYMMETRIC, REWARM, replace(INHERIT, optimizer="asymmetric")):
        twin = model.grown(chain((PARENT, child), 1, dynamics, operator), "1")
        start = twin.weights()
        for step in range(2):
            twin.push(step)
        for name, after in twin.weights().items():
            change = (after - start[name]).abs()
            assert change.isfinite().all() and change.min() > 0 and change.max() < 10 * RATE, (name, dynamics)


@pytest.mark.parametrize("depth", ["zero_exit", "stack"])
@pytest.mark.parametrize("optimizer", ["carry", "asymmetric", "reset"])
def test_rewarming_scales_the_updates_of_new_coordinates_alone(optimizer: Any, depth: Any) -> None:
    """Rate and decay: at every step the change is the uniform one, times the pace where a coordinate is new."""
    child = CHILD.model_copy(update={"num_hidden_layers": 3})
    operator, model = Operator(noise=0.0, depth=depth), Trainee(random_model("llama", PARENT))
    for step in range(3):
        model.push(step)
    plans = [
        chain((PARENT, child), 3, Dynamics(optimizer, rates, rewarm_factor=1.3, rewarm_steps=4), operator)
        for rates in ("uniform", "rewarm_new")
    ]
    uniform, rewarmed = (model.grown(plan, "1") for plan in plans)
    numbers = labels(PARENT, CHILD, model.weights())
    for step, pace in enumerate([0.325, 0.65, 0.975, 1.3, 1.3]):
        before = rewarmed.weights()
        load(uniform.model, before)
        uniform.push(step)
        rewarmed.push(step)
        for name, after in rewarmed.weights().items():
            in_new_layer = "layers.2." in name
            is_old = torch.zeros(after.shape) if in_new_layer else is_first(numbers[name])
            change = uniform.weights()[name] - before[name]
            wanted = torch.where(is_old == 1, change, pace * change)
            assert (after - before[name] - wanted).abs().max() < 1e-14, name


def test_a_branch_goes_on_warming_where_its_trunk_stopped() -> None:
    plan = chain((PARENT, CHILD), 4, REWARM)
    branch = replace(plan.stage("1"), name="branch", source=Continue("1"))
    plan = replace(plan, stages=(*plan.stages, branch))
    names = empty_weights(CHILD)
    trunk, after = (stage_rates(plan, name, "llama", names) for name in ("1", "branch"))
    assert trunk is not None and after is not None
    assert trunk.rewarming == Rewarming(1.3, 6, 0) and after.rewarming == Rewarming(1.3, 6, 4)
    assert [after.rewarming.at(step) for step in range(3)] == [trunk.rewarming.at(step) for step in (4, 5, 6)]
    assert trunk.rewarming.at(0) == pytest.approx(1.3 / 6) and after.rewarming.at(1) == 1.3
    name = "model.embed_tokens.weight"
    (one,), (other,) = (spread(rates.coordinates[name].age) for rates in (trunk, after))
    assert set(one.flatten().tolist()) == {0.0, math.inf} and set(other.flatten().tolist()) == {4.0, math.inf}


def test_nothing_is_wrapped_where_nothing_is_special() -> None:
    child = CHILD.model_copy(update={"num_hidden_layers": 3})
    names = empty_weights(child)
    for optimizer in ("carry", "reset"):
        assert stage_rates(chain((PARENT, child), 3, Dynamics(optimizer)), "1", "llama", names) is None
    assert stage_rates(chain((PARENT,), 3, REWARM), "0", "llama", empty_weights(PARENT)) is None
    deeper = PARENT.model_copy(update={"num_hidden_layers": 3})
    for dynamics in (INHERIT, ASYMMETRIC):  # no width grows, and a zero-exit block has a count of its own
        assert stage_rates(chain((PARENT, deeper), 3, dynamics), "1", "llama", empty_weights(deeper)) is None
    model, twin = (Trainee(random_model("llama", PARENT)) for _ in range(2))
    model.train(2)
    for step in range(2):
        gradients(twin.model, random_tokens(seed=step))
        for group in twin.optimizer.param_groups:
            group["lr"] = RATE
        twin.optimizer.step()
    assert all(torch.equal(one, twin.weights()[name]) for name, one in model.weights().items())


@pytest.mark.parametrize("depth", ["zero_exit", "stack"])
@pytest.mark.parametrize("optimizer", ["carry", "asymmetric"])
def test_counts_belong_to_tensors(optimizer: Any, depth: Any) -> None:
    """New zero-exit tensors count from 0, so that their first update has the whole rate and not 0.45 of it."""
    deeper = PARENT.model_copy(update={"num_hidden_layers": 3})
    plan = chain((PARENT, deeper), 5, Dynamics(optimizer), Operator(noise=0.0, depth=depth))
    model = Trainee(random_model("llama", PARENT))
    model.train(5)
    twin = model.grown(plan, "1")
    afresh = depth == "zero_exit" or optimizer == "asymmetric"
    for name in twin.weights():
        expected = 0 if afresh and "layers.2." in name else 5
        assert float(twin.tensors[f"step.{name}"]) == expected
    if depth == "zero_exit":
        name = "model.layers.2.mlp.down_proj.weight"
        twin.push(0)
        assert float(twin.weights()[name].abs().mean()) == pytest.approx(RATE, rel=1e-4)


def asymmetry(trainee: Trainee, name: str, old: int) -> float:
    """Largest difference between copies along the columns, relative to the tensor's deviation."""
    tensor = trainee.weights()[name]
    copies = torch.arange(old, tensor.shape[1])
    return float((tensor[:, copies] - tensor[:, copies % old]).abs().max() / tensor.std())


def test_what_breaks_the_symmetry_of_copies() -> None:
    """Growth spec, section 9, test 9: carried moments keep the lock, and so do inherited rates; a reset of the new
    coordinates' moments, a rate of their own, or noise breaks it."""
    model = Trainee(random_model("llama", PARENT))
    model.train(5)
    places = {"model.layers.0.self_attn.q_proj.weight": 16, "model.layers.1.mlp.down_proj.weight": 24}
    places["model.embed_tokens.weight"] = 16

    def apart(dynamics: Dynamics, operator: Operator = PLAIN) -> list[float]:
        twin = model.grown(chain((PARENT, DOUBLE), 5, dynamics, operator), "1")
        twin.train(10)
        return [asymmetry(twin, name, old) for name, old in places.items()]

    for locked in (Dynamics(), Dynamics(optimizer="reset"), INHERIT):
        assert max(apart(locked)) < 1e-9
    for broken in (ASYMMETRIC, REWARM, Dynamics(rates="rewarm_new", rewarm_steps=6)):
        assert min(apart(broken)) > 0.01
    assert min(apart(Dynamics(), Operator(noise=0.3))[:2]) > 0.5


@pytest.mark.parametrize("dynamics", [Dynamics(), INHERIT, ASYMMETRIC, REWARM])
def test_new_blocks_live_under_every_policy(dynamics: Dynamics) -> None:
    """Growth spec, section 9, test 10: the first step moves the exits of a new block, the second all of it."""
    child = CHILD.model_copy(update={"num_hidden_layers": 3})
    model = Trainee(random_model("llama", PARENT))
    model.train(2)
    twin = model.grown(chain((PARENT, child), 2, dynamics), "1")
    for group in twin.optimizer.param_groups:
        group["weight_decay"] = 0.0
    start = twin.weights()

    def moved() -> set[str]:
        return {name for name, now in twin.weights().items() if "layers.2." in name and not now.equal(start[name])}

    twin.train(1)
    assert moved() == {"model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"}
    twin.train(1, first=1)
    assert moved() == {name for name in start if "layers.2." in name}
