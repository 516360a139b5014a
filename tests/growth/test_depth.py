import pytest
import torch
from tiny_models import empty_model, gradients, grown_model, load, random_model, random_tokens, shape

from kinfolk.growth.claims import claims_preservation, describe
from kinfolk.growth.depth import layer_map
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.plan.stages import Operator

NOISY = Operator(noise=0.3)
STACK = Operator(depth="stack")
EXITS = ("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")


def test_layer_map_cycles_over_the_parent() -> None:
    assert [layer.source for layer in layer_map(3, 8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [layer.is_new for layer in layer_map(3, 5)] == [False, False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [3, 5])
def test_zero_exit_blocks_keep_every_bit(dtype: torch.dtype, layers: int) -> None:
    parent, child = shape(), shape(layers=layers)
    model = random_model("llama", parent, bias=True)
    twin = grown_model(model, "llama", parent, child, NOISY, bias=True)
    for one in (model, twin):
        one.to(dtype)
    with torch.no_grad():
        before, after = (one(random_tokens()).logits for one in (model, twin))
    assert before.dtype == dtype
    assert torch.equal(before, after)


def test_new_blocks_are_copies_with_zero_exits_on_top() -> None:
    parent, child = shape(), shape(layers=5)
    parameters = dict(random_model("qwen3", parent, bias=True).named_parameters())
    grown = grow_weights(parameters, "qwen3", parent, child, NOISY)
    for name, tensor in grown.items():
        if not name.startswith("model.layers."):
            assert torch.equal(tensor, parameters[name])
            continue
        layer, rest = int(name.split(".")[2]), name.split(".", 3)[3]
        source = parameters[f"model.layers.{layer % 2}.{rest}"]
        assert torch.equal(tensor, torch.zeros_like(source) if layer >= 2 and rest.endswith(EXITS) else source), name
        assert tensor.data_ptr() != source.data_ptr()


def test_zero_exit_blocks_live_from_the_second_step() -> None:
    parent, child = shape(), shape(layers=3)
    twin = grown_model(random_model("qwen3", parent), "qwen3", parent, child, NOISY)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3)

    def alive() -> set[str]:
        found = {name for name, gradient in gradients(twin, random_tokens()).items() if gradient.any()}
        return {name for name in found if name.startswith("model.layers.2.")}

    assert alive() == {"model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"}
    optimizer.step()
    assert alive() == {name for name, _ in twin.named_parameters() if name.startswith("model.layers.2.")}


def test_drawn_blocks_are_silent_and_hold_matrices_of_their_own() -> None:
    parent, child = shape(hidden=40, ffn=64), shape(hidden=40, ffn=64, layers=4)
    drawn = Operator(block="drawn")
    model = random_model("llama", parent, bias=True)
    twin = grown_model(model, "llama", parent, child, drawn, bias=True)
    with torch.no_grad():
        assert torch.equal(model(random_tokens()).logits, twin(random_tokens()).logits)
    parameters = dict(model.named_parameters())
    grown = grow_weights(parameters, "llama", parent, child, drawn)
    for layer in (2, 3):
        gate, source = (grown[f"model.layers.{number}.mlp.gate_proj.weight"] for number in (layer, layer - 2))
        assert gate.std() == pytest.approx(float(source.std()), rel=0.1)
        assert torch.corrcoef(torch.stack([gate.flatten(), source.flatten()]))[0, 1].abs() < 0.1
        for name in ("input_layernorm.weight", "self_attn.q_proj.bias"):
            assert torch.equal(grown[f"model.layers.{layer}.{name}"], parameters[f"model.layers.{layer - 2}.{name}"])
    two, three = (grown[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (2, 3))
    assert torch.corrcoef(torch.stack([two.flatten(), three.flatten()]))[0, 1].abs() < 0.1
    again = grow_weights(parameters, "llama", parent, child, drawn)
    assert all(torch.equal(grown[name], again[name]) for name in grown)


def test_moments_of_new_blocks_are_zero_and_of_stacked_ones_copied() -> None:
    parent, child = shape(), shape(hidden=22, layers=3)
    moments = dict(random_model("llama", parent).named_parameters())
    for operator in (NOISY, STACK):
        for grown in grow_moments(moments, moments, "llama", parent, child, operator):
            load(empty_model("llama", child), grown)
            for name, tensor in grown.items():
                if name.startswith("model.layers.2."):
                    if operator is STACK:
                        assert torch.equal(tensor, grown[name.replace("layers.2.", "layers.0.")])
                    else:
                        assert not tensor.any()


@pytest.mark.parametrize("operator", [NOISY, STACK])
def test_both_at_once_is_width_then_depth(operator: Operator) -> None:
    parent, wide, child = shape(), shape(hidden=22, ffn=40), shape(hidden=22, ffn=40, layers=5)
    parameters = dict(random_model("llama", parent).named_parameters())
    once = grow_weights(parameters, "llama", parent, child, operator)
    steps = grow_weights(grow_weights(parameters, "llama", parent, wide, operator), "llama", wide, child, operator)
    assert list(once) == list(steps)
    assert all(torch.equal(once[name], steps[name]) for name in once)


def test_zero_exit_depth_commutes_with_width() -> None:
    parent, deep, child = shape(), shape(layers=3), shape(hidden=22, heads=6, ffn=40, layers=3)
    parameters = dict(random_model("llama", parent).named_parameters())
    plain = Operator(noise=0.0)
    once = grow_weights(parameters, "llama", parent, child, plain)
    other = grow_weights(grow_weights(parameters, "llama", parent, deep, plain), "llama", deep, child, plain)
    assert all(torch.equal(once[name], other[name]) for name in once)


def test_stacking_says_that_it_is_not_exact() -> None:
    parent, child = shape(), shape(hidden=22, layers=4)
    assert not claims_preservation(STACK, parent, child)
    assert claims_preservation(STACK, parent, shape(hidden=22))
    assert describe(STACK, parent, child) == (
        "energy_split (hidden 16 -> 22; noise 1, seed 0), then stack (layers 2 -> 4)"
    )
    assert describe(STACK, parent, parent) == "same shape: a copy"
