"""Rate transfer against a model with explicit multipliers, and the coordinate check over widths and depths."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from double_precision import use_double_precision
from torch import Tensor
from torch.nn.functional import cross_entropy

from kinfolk.family.rate_transfer import Factors, parameter_factors
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Architecture, Shape
from kinfolk.family.spec import Model
from kinfolk.train.model import config_for, new_model, rescale_new_model
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.update import make_update

VOCABULARY = 16
BASE = Shape(
    num_hidden_layers=2,
    hidden_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=24,
)
WIDE_HEADS = {"num_hidden_layers": 5, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
MORE_HEADS = {**WIDE_HEADS, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
SETTINGS = Optimizer(eps=1e-3, weight_decay=0.3)
"""An eps of the size of the gradients, and a decay that shows after a few steps."""
RATE = 0.01

Edit = Callable[[Mapping[str, Factors]], Mapping[str, Factors]]


def tokens(seed: int, batch: int = 8, time: int = 33) -> Tensor:
    """Text of a random Markov chain, (batch, time)."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(VOCABULARY, VOCABULARY, generator=generator).pow(8)
    columns = [torch.randint(VOCABULARY, (batch,), generator=generator)]
    for _ in range(time - 1):
        columns.append(torch.multinomial(chances[columns[-1]], 1, generator=generator)[:, 0])
    return torch.stack(columns, 1)


def fresh(architecture: Architecture, shape: Shape, seed: int = 0) -> Any:
    return new_model(config_for(shape, Model(architecture=architecture, context_length=32), VOCABULARY), seed)


def loss_of(model: Any, batch: Tensor) -> Tensor:
    return cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())


# The published model, with its multipliers, against the stock one that they are folded into.


def explicit(architecture: Architecture, shape: Shape, width: float, depth: float, head: float) -> Any:
    """Table 1 of arXiv 2505.01618 at alpha = 1, with multipliers in the forward pass and on the initial weights."""
    model = fresh(architecture, shape).double()
    use_double_precision(model)
    for layer in model.model.layers:
        for end in (layer.self_attn.o_proj, layer.mlp.down_proj):
            end.register_forward_hook(lambda module, inputs, output: output / depth)
        layer.self_attn.scaling /= head**0.5
    model.lm_head.register_forward_hook(lambda module, inputs, output: output / width)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # drawn with a deviation that falls as 1 / sqrt(hidden size)
                is_hidden = "layers" in name
                parameter.mul_(1.0 if is_hidden else width**0.5)
    return model


def explicit_optimizer(model: Any, width: float, depth: float, head: float) -> torch.optim.AdamW:
    """The learning rates, decays and eps of the same table."""
    groups = []
    for name, parameter in model.named_parameters():
        rate, decay, eps = RATE, SETTINGS.weight_decay, SETTINGS.eps / width
        if "q_norm" in name or "k_norm" in name:
            decay, eps = 0.0, SETTINGS.eps / (head * depth)
        elif "norm" in name:
            decay, eps = 0.0, SETTINGS.eps / (width * (depth if "layers" in name else 1))
        elif "layers" in name:
            rate, decay, eps = RATE / width, SETTINGS.weight_decay * width, SETTINGS.eps / (width * depth)
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay, "eps": eps})
    return torch.optim.AdamW(groups, betas=SETTINGS.betas)


def logits_apart(architecture: Architecture, shape: Shape, edit: Edit = lambda factors: factors) -> float:
    """Largest difference of the two models' logits after four steps, over the largest logit."""
    width, depth = shape.hidden_size / BASE.hidden_size, shape.num_hidden_layers / BASE.num_hidden_layers
    head = shape.head_dim / BASE.head_dim
    published = explicit(architecture, shape, width, depth, head)
    optimizer = explicit_optimizer(published, width, depth, head)

    factors = edit(parameter_factors(shape, BASE, "completep", architecture))
    stock = fresh(architecture, shape).double()
    use_double_precision(stock)
    rescale_new_model(stock, factors, BASE)
    own = make_optimizer(stock, SETTINGS, factors)
    update = make_update(stock, own, None)
    for step in range(4):
        for model in (published, stock):
            model.zero_grad()
            loss_of(model, tokens(step, batch=2, time=12)).backward()
        optimizer.step()
        update(RATE, step)
    with torch.no_grad():
        one, other = (model(tokens(99)).logits for model in (published, stock))
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("architecture", "sizes"), [("llama", WIDE_HEADS), ("llama", MORE_HEADS), ("qwen3", WIDE_HEADS)]
)
def test_folding_is_exact(architecture: Architecture, sizes: dict[str, int], tied: bool) -> None:
    shape = BASE.model_copy(update={**sizes, "tie_word_embeddings": tied})
    assert logits_apart(architecture, shape) < 1e-11


@pytest.mark.parametrize(
    ("module", "field"),
    [
        *product(("embed_tokens", "down_proj", "lm_head", "k_proj"), ("initial", "rate", "decay", "eps")),
        *product(("norm", "q_norm"), ("initial", "rate", "eps")),  # gammas are not decayed
    ],
)
def test_every_factor_counts(module: str, field: str) -> None:
    def edit(factors: Mapping[str, Factors]) -> Mapping[str, Factors]:
        changed = 1.3 * getattr(factors[module], field)
        return {**factors, module: replace(factors[module], **{field: changed})}

    shape = BASE.model_copy(update={**WIDE_HEADS, "num_hidden_layers": 3, "tie_word_embeddings": False})
    assert logits_apart("qwen3", shape, edit) > 1e-5


def test_the_base_is_what_it_is_without_transfer() -> None:
    factors = parameter_factors(BASE, BASE, "completep", "qwen3")
    assert set(factors.values()) == {Factors()}
    model, plain = fresh("qwen3", BASE), fresh("qwen3", BASE)
    rescale_new_model(model, factors, BASE)
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_every_parameter_has_factors(architecture: Architecture, tied: bool) -> None:
    shape = BASE.model_copy(update={"tie_word_embeddings": tied})
    names = {name.split(".")[-2] for name, _ in fresh(architecture, shape).named_parameters()}
    assert parameter_factors(shape, BASE, "mup", architecture).keys() == names


# The coordinate check (arXiv 2203.03466, appendix D.1).


def shape_of(width: int = 32, layers: int = 2, tied: bool = True) -> Shape:
    return Shape(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 16,
        head_dim=8,
        intermediate_size=3 * width,
        tie_word_embeddings=tied,
    )


def activations(model: Any, batch: Tensor) -> dict[str, Tensor]:
    """What layers of each kind compute: the whole stream before the final norm, and the logits of the next tokens."""
    seen = defaultdict(list)
    kinds = ("embed_tokens", "q_proj", "o_proj", "up_proj", "down_proj")
    named = [(name.split(".")[-1], module) for name, module in model.named_modules()]
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, kind=kind: seen[kind].append(output))
        for kind, module in named
        if kind in kinds
    ]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda module, inputs: seen["stream"].append(inputs[0])))
    with torch.no_grad():
        seen["logits"].append(model(batch[:, :-1]).logits.gather(2, batch[:, 1:, None]))
    for hook in hooks:
        hook.remove()
    return {kind: torch.stack(values) for kind, values in seen.items()}


@cache
def changes(architecture: Architecture, shape: Shape, base: Shape, rule: Any, edit: Edit | None) -> dict[str, float]:
    """Mean absolute change of the activations by five steps on one batch, the same for all shapes."""
    model = fresh(architecture, shape)
    factors = None
    if rule != "none":
        factors = parameter_factors(shape, base, rule, architecture)
        factors = factors if edit is None or shape == base else dict(edit(factors))
        rescale_new_model(model, factors, base)
    optimizer = make_optimizer(model, Optimizer(), factors)
    update, batch = make_update(model, optimizer, None), tokens(0)
    before = activations(model, batch)
    for step in range(5):
        loss_of(model, batch).backward()
        update(2**-7, step)
        optimizer.zero_grad()
    after = activations(model, batch)
    return {kind: float((after[kind] - before[kind]).abs().mean()) for kind in before}


def growth_rates(
    shapes: Sequence[Shape], sizes: Sequence[int], rule: str, architecture: Architecture = "llama", edit: Any = None
) -> dict[str, float]:
    """Exponents of the change in the size, by kind of activation: least squares in logarithms."""
    rows = [changes(architecture, shape, shapes[0], rule, edit) for shape in shapes]
    sides = [math.log(size / sizes[0]) for size in sizes]
    middle = sum(sides) / len(sides)
    spread = sum((side - middle) ** 2 for side in sides)
    return {
        kind: sum((side - middle) * math.log(row[kind]) for side, row in zip(sides, rows, strict=True)) / spread
        for kind in rows[0]
    }


def over_widths(widths: Sequence[int], rule: str, tied: bool = True, **options: Any) -> dict[str, float]:
    return growth_rates([shape_of(width=width, tied=tied) for width in widths], widths, rule, **options)


def over_depths(depths: Sequence[int], rule: str, **options: Any) -> dict[str, float]:
    found = growth_rates([shape_of(layers=depth) for depth in depths], depths, rule, **options)
    # Under completep one branch gives way to the number of them: it is their sum that must not change.
    return {kind: value + (kind in ("o_proj", "down_proj") and rule == "completep") for kind, value in found.items()}


WIDTH_BOUND = 0.2
DEPTH_BOUND = 0.35
"""Of the exponents. The base has two layers, of which the first sees nothing but embeddings, hence the larger bound."""


def is_flat(exponents: Mapping[str, float], bound: float) -> bool:
    return all(abs(exponent) < bound for exponent in exponents.values())


@pytest.mark.parametrize(("tied", "widths"), [(True, (32, 64, 128, 256)), (False, (32, 128))])
def test_changes_do_not_depend_on_the_width(tied: bool, widths: tuple[int, ...]) -> None:
    assert is_flat(over_widths(widths, "mup", tied), WIDTH_BOUND)
    standard = over_widths((32, 128), "none", tied)
    assert standard["stream"] > 0.5 and standard["q_proj"] > 0.4 and standard["up_proj"] > 0.4


def test_changes_do_not_depend_on_the_width_with_norms_in_heads() -> None:
    assert is_flat(over_widths((32, 128), "mup", architecture="qwen3"), WIDTH_BOUND)


def test_changes_do_not_depend_on_the_depth() -> None:
    depths = (2, 4, 8)
    assert is_flat(over_depths(depths, "completep"), DEPTH_BOUND)
    assert over_depths(depths, "mup")["stream"] > 0.6  # width alone


def broken(names: Sequence[str], **powers: float) -> Edit:
    """Factors of these modules to the given power: 0 takes a factor away, 0.5 is half of it."""

    def edit(factors: Mapping[str, Factors]) -> Mapping[str, Factors]:
        return {
            name: replace(each, **{field: getattr(each, field) ** power for field, power in powers.items()})
            if name in names
            else each
            for name, each in factors.items()
        }

    return edit


MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    "edit",
    [
        broken(MATRICES, rate=0),
        broken(MATRICES, rate=0.5),
        broken(["q_proj"], rate=0),
        broken(["o_proj"], rate=0),
        broken(MATRICES, initial=0),
        broken(["norm"], initial=0),
        lambda factors: {**factors, "embed_tokens": factors["q_proj"]},
    ],
)
def test_the_check_over_widths_finds_wrong_factors(edit: Edit) -> None:
    assert is_flat(over_widths((32, 128), "mup"), WIDTH_BOUND)
    assert not is_flat(over_widths((32, 128), "mup", edit=edit), WIDTH_BOUND)


@pytest.mark.parametrize("edit", [broken(["o_proj", "down_proj"], initial=0), broken(["o_proj", "down_proj"], rate=0)])
def test_the_check_over_depths_finds_wrong_factors(edit: Edit) -> None:
    assert is_flat(over_depths((2, 8), "completep"), DEPTH_BOUND)
    assert not is_flat(over_depths((2, 8), "completep", edit=edit), DEPTH_BOUND)


def test_factors_multiply_along_a_ladder() -> None:
    """From a base to a second shape and from that to a third is from the base to the third."""
    shapes = [BASE, BASE.model_copy(update=MORE_HEADS), BASE.model_copy(update={**WIDE_HEADS, "num_hidden_layers": 8})]
    (first, second), whole = (
        [parameter_factors(larger, smaller, "completep", "qwen3") for smaller, larger in pairwise(shapes)],
        parameter_factors(shapes[2], shapes[0], "completep", "qwen3"),
    )
    for name, each in whole.items():
        for field in ("initial", "rate", "decay", "eps"):
            assert getattr(each, field) == pytest.approx(getattr(first[name], field) * getattr(second[name], field))
