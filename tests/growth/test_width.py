from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    VOCABULARY,
    empty_model,
    gradients,
    grown_model,
    load,
    random_model,
    random_tokens,
    relative_difference,
    shape,
)

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture, Shape
from kinfolk.growth.axes import READERS, Axis
from kinfolk.growth.claims import claims_preservation
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.growth.grown_axes import GrownAxes
from kinfolk.growth.names import axes_of
from kinfolk.growth.noise import Draws
from kinfolk.growth.rows import ELEMENTS_PER_BLOCK, TensorRows
from kinfolk.growth.width import WidthGrowth
from kinfolk.plan.stages import Operator

AXES = (Axis.HIDDEN_READ, Axis.FFN)
NOISY, PLAIN = Operator(noise=0.3), Operator(noise=0.0)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("queries_per_group", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_function_is_kept(architecture: Architecture, tied: bool, queries_per_group: int, bias: bool) -> None:
    groups = 4 // queries_per_group
    parent = shape(heads=4, groups=groups, tied=tied)
    # Non-integer in everything, KV groups and query heads in a group at once.
    child = shape(hidden=26, heads=(groups + 1) * (queries_per_group + 1), groups=groups + 1, ffn=31, tied=tied)
    for seed in (0, 1):
        model = random_model(architecture, parent, seed=seed, bias=bias)
        twin = grown_model(model, architecture, parent, child, NOISY, bias=bias)
        assert relative_difference(model, twin, random_tokens(seed=seed)) < 1e-13


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_function_is_kept_at_any_ratio(data: st.DataObject) -> None:
    def grown(low: int, high: int, more: int) -> tuple[int, int]:
        old = data.draw(st.integers(low, high))
        return old, data.draw(st.integers(old, more))

    hidden, groups, slots, ffn = grown(2, 9, 30), grown(1, 3, 4), grown(1, 3, 4), grown(1, 8, 20)
    layers = grown(1, 2, 4)
    tied, architecture = data.draw(st.booleans()), data.draw(st.sampled_from(["llama", "qwen3"]))
    parent, child = (
        shape(hidden[i], groups[i] * slots[i], groups[i], ffn[i], layers[i], tied, head_dim=2) for i in (0, 1)
    )
    operator = Operator(noise=data.draw(st.sampled_from([0.0, 0.3, 1.0])), seed=data.draw(st.integers(0, 9)))
    assert claims_preservation(operator, parent, child)
    model = random_model(architecture, parent, seed=operator.seed)
    twin = grown_model(model, architecture, parent, child, operator)
    assert relative_difference(model, twin, random_tokens(1, 6, operator.seed)) < 1e-11


def test_function_is_kept_under_padding_and_cached_decoding() -> None:
    parent, child = shape(), shape(hidden=22, heads=9, groups=3, ffn=40, layers=3)
    model = random_model("llama", parent)
    twin = grown_model(model, "llama", parent, child, NOISY)
    tokens = random_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    with torch.no_grad():
        before, after = (one(tokens, attention_mask=mask).logits for one in (model, twin))
        assert (before - after)[mask.bool()].abs().max() < 1e-12
        whole = model(tokens).logits
        cached = twin(tokens[:, :5], use_cache=True)
        for step in range(5, tokens.shape[1]):
            cached = twin(tokens[:, step : step + 1], past_key_values=cached.past_key_values, use_cache=True)
            assert (cached.logits[:, 0] - whole[:, step]).abs().max() < 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_every_sublayer_writes_the_parents_hidden_state(tied: bool) -> None:
    parent, child = shape(tied=tied), shape(hidden=22, heads=9, groups=3, ffn=40, tied=tied)
    model = random_model("qwen3", parent)
    twin = grown_model(model, "qwen3", parent, child, NOISY)
    seen: dict[str, list[torch.Tensor]] = {}
    for one in (model, twin):
        for name, module in one.model.named_modules():
            if name == "embed_tokens" or name.endswith(("self_attn", "mlp")) or name in ("layers.0", "layers.1"):

                def keep(_m: object, _i: object, output: object, name: str = name) -> None:
                    seen.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

                module.register_forward_hook(keep)
        with torch.no_grad():
            one(random_tokens())
    index = torch.arange(22) % 16
    copies = torch.bincount(index)[index]
    alpha = (22 / (16 * copies.double())).sqrt()
    assert len(seen) == 7
    for name, (before, after) in seen.items():
        assert (after - alpha * before[..., index]).abs().max() < 1e-12 * before.abs().max(), name


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_the_parents_times_the_gradient_factor(architecture: Architecture, tied: bool) -> None:
    parent, child = shape(tied=tied), shape(hidden=22, heads=9, groups=3, ffn=31, tied=tied)
    model = random_model(architecture, parent, bias=True)
    twin = grown_model(model, architecture, parent, child, PLAIN, bias=True)
    tokens = random_tokens()
    before, after = gradients(model, tokens), gradients(twin, tokens)
    squares = {name: gradient**2 for name, gradient in before.items()}
    first, second = grow_moments(before, squares, architecture, parent, child, PLAIN)
    assert list(first) == list(after) == list(second)
    for name, gradient in after.items():
        assert (gradient - first[name]).abs().max() <= 1e-12 * gradient.abs().max(), name
        assert (gradient**2 - second[name]).abs().max() <= 1e-12 * gradient.abs().max() ** 2, name


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_noise_sums_to_zero_over_copies(groups: int, tied: bool) -> None:
    parent = shape(hidden=160, heads=4, groups=groups, tied=tied, ffn=120, head_dim=16)
    child = shape(hidden=240, heads=8, groups=groups, tied=tied, ffn=300, head_dim=16)
    parameters = dict(random_model("llama", parent).named_parameters())
    plain, noisy = (grow_weights(parameters, "llama", parent, child, one) for one in (PLAIN, NOISY))
    width = GrownAxes(parent, child, NOISY, "llama")
    assert ("lm_head.weight" in noisy) == (not tied)
    for name, clean in plain.items():
        axes, _ = axes_of(name, "llama")
        if axes[-1] not in READERS:
            assert torch.equal(clean, noisy[name]), name
            continue
        growth = width.axis(axes[-1])
        assert growth is not None
        noise = noisy[name] - clean
        sums = torch.zeros(clean.shape[0], int(growth.index.max()) + 1, dtype=torch.float64)
        assert sums.index_add(1, growth.index, noise).abs().max() < 1e-15
        assert not noise[:, growth.copies == 1].any()
        # The copies of a unit sum to the parent's entry.
        if axes[0].name in ("VOCAB", "HIDDEN_WRITE"):
            summed = sums.index_add(1, growth.index, noisy[name])[: clean.shape[0]]
            rows = width.axis(axes[0])
            expected = parameters[name][rows.index] * rows.value[:, None] if rows else parameters[name]
            assert (summed - expected).abs().max() < 1e-14
        for copies in growth.copies.unique().tolist():
            if copies > 1:
                measured = float(noise[:, growth.copies == copies].std() / clean.std())
                assert measured == pytest.approx(0.3 * ((copies - 1) / copies) ** 0.5, rel=0.05), name


def test_integer_ratio_is_tiling() -> None:
    parent, child = shape(tied=False), shape(hidden=32, heads=8, groups=4, ffn=48, tied=False)
    parameters = dict(random_model("llama", parent).named_parameters())
    grown = grow_weights(parameters, "llama", parent, child, PLAIN)
    for name, tensor in parameters.items():
        axes, _ = axes_of(name, "llama")
        if len(axes) == 1:
            expected = tensor.tile(2)
        elif axes[0].name == "VOCAB":
            expected = tensor.tile(1, 2) / (2 if name == "lm_head.weight" else 1)
        else:
            expected = tensor.tile(2, 2) / 2
        assert torch.equal(grown[name], expected), name


def test_twice_two_is_four() -> None:
    small = shape()
    middle, large = (shape(16 * n, 4 * n, 2 * n, 24 * n) for n in (2, 4))
    parameters = dict(random_model("llama", small).named_parameters())
    once = grow_weights(parameters, "llama", small, large, PLAIN)
    half = grow_weights(parameters, "llama", small, middle, PLAIN)
    twice = grow_weights(half, "llama", middle, large, PLAIN)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_chained_growth_at_odd_ratios_is_exact() -> None:
    shapes = [shape(), shape(21, 6, 3, 30), shape(37, 12, 3, 47, 3), shape(40, 15, 3, 50, 4)]
    first = model = random_model("llama", shapes[0])
    for parent, child in pairwise(shapes):
        model = grown_model(model, "llama", parent, child, NOISY)
    assert relative_difference(first, model, random_tokens()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_same_shape_is_an_exact_copy(dtype: torch.dtype) -> None:
    same = shape(tied=False)
    parameters = {name: p.detach().to(dtype) for name, p in random_model("qwen3", same).named_parameters()}
    grown = grow_weights(parameters, "qwen3", same, same, NOISY)
    first, second = grow_moments(parameters, parameters, "qwen3", same, same, NOISY)
    for copy in (grown, first, second):
        assert list(copy) == list(parameters)
        for name, tensor in parameters.items():
            assert torch.equal(copy[name], tensor)
            assert copy[name].dtype == dtype
            assert copy[name].data_ptr() != tensor.data_ptr()


def test_same_bytes_from_same_seed_in_any_order() -> None:
    parent, child = shape(), shape(hidden=22, heads=9, groups=3, ffn=31, layers=3)
    parameters = dict(random_model("llama", parent).named_parameters())
    one, other = (
        grow_weights(dict(items), "llama", parent, child, NOISY)
        for items in (parameters.items(), reversed(parameters.items()))
    )
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = grow_weights(parameters, "llama", parent, child, Operator(noise=0.3, seed=1))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(one[name], different[name])
    # Tensors of one shape do not share their noise.
    plain = grow_weights(parameters, "llama", parent, child, PLAIN)
    gate, up = (one[key] - plain[key] for key in (f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")))
    assert torch.corrcoef(torch.stack([gate.flatten(), up.flatten()]))[0, 1].abs() < 0.2


def test_float32_masters_are_grown_in_float32() -> None:
    parent, child = shape(), shape(hidden=22, heads=9, groups=3, ffn=31)
    exact = dict(random_model("llama", parent).named_parameters())
    single = grow_weights({k: v.float() for k, v in exact.items()}, "llama", parent, child, NOISY)
    double = grow_weights({k: v.float().double() for k, v in exact.items()}, "llama", parent, child, NOISY)
    for name, tensor in single.items():
        assert tensor.dtype == torch.float32
        assert (tensor - double[name]).abs().max() < 1e-6


def test_a_tied_state_dict_lists_the_head_twice_and_the_child_once() -> None:
    parent, child = shape(), shape(hidden=22)
    model = random_model("llama", parent)
    grown = grow_weights(model.state_dict(), "llama", parent, child, NOISY)
    assert "lm_head.weight" in model.state_dict()
    load(empty_model("llama", child), grown)
    untied = dict(model.named_parameters()) | {"lm_head.weight": torch.zeros(VOCABULARY, 16, dtype=torch.float64)}
    with pytest.raises(KinfolkError, match="tie_word_embeddings"):
        grow_weights(untied, "llama", parent, child, NOISY)


def test_refusals_come_before_any_work() -> None:
    parent = shape()
    with pytest.raises(KinfolkError, match="cannot shrink"):
        grow_weights({}, "llama", parent, shape(hidden=12), NOISY)
    with pytest.raises(KinfolkError, match="head_dim"):
        grow_moments({}, {}, "llama", parent, shape(head_dim=6), NOISY)
    parameters = dict(random_model("llama", parent).named_parameters())
    wrong: list[Shape] = [shape(hidden=14), shape(ffn=20), shape(layers=1)]
    for claimed in wrong:
        with pytest.raises(KinfolkError, match="parent's shape"):
            grow_weights(parameters, "llama", claimed, shape(hidden=32, ffn=48, layers=4), NOISY)
    with pytest.raises(KinfolkError, match="not finite"):
        broken = {name: tensor.detach() * float("nan") for name, tensor in parameters.items()}
        grow_weights(broken, "llama", parent, shape(hidden=20), NOISY)


def test_noise_along_the_rows_is_drawn_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's matrices are (inputs, outputs): their copies are rows, which the memory need not hold draws for."""
    asked: list[int] = []
    rows_of = Draws.rows

    def recorded(draws: Draws, rows: int, columns: int) -> torch.Tensor:
        asked.append(rows * columns)
        return rows_of(draws, rows, columns)

    monkeypatch.setattr(Draws, "rows", recorded)
    sizes = [shape(hidden=hidden, heads=hidden // 16, groups=hidden // 16, ffn=2 * hidden) for hidden in (512, 1024)]
    tensor = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, noisy = (
        torch.cat([block for _, block in WidthGrowth(*sizes, each, "gpt2").blocks(TensorRows(tensor), AXES, "c_fc")])
        for each in (PLAIN, NOISY)
    )
    assert sum(asked) == 512 * 2048 and max(asked) <= ELEMENTS_PER_BLOCK
    noise = noisy - plain
    assert float(noise.std()) > 0.1 * float(plain.std())
    assert (noise[:512] + noise[512:]).abs().max() < 1e-15
