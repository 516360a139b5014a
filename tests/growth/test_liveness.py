"""Gradients, noise and life after growth, on every architecture; and growth in several steps."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import (
    KINDS,
    ONE_EACH,
    checkpoint_of,
    child_of,
    difference,
    gradients_of,
    load,
    logits_of,
    parent_model,
    run,
    some_tokens,
)

from kinfolk.growth.axes import READERS, Axis
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.growth.grown_axes import GrownAxes
from kinfolk.growth.names import place_of
from kinfolk.growth.sizes import sizes_of_config, with_fields
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator

PLAIN = Operator(noise=0.0)
WIDER: dict[str, Any] = {"hidden_size": 27, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 31}
DOUBLE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
}


def doubled(kind: str, **more: int) -> dict[str, Any]:
    table = table_of(KINDS[kind].architecture)
    return DOUBLE | ({} if table.head_size_is_free else {"num_key_value_heads": 8}) | more


def wider(kind: str) -> dict[str, Any]:
    """At a ratio that is no integer, where the default operator can."""
    return WIDER if table_of(KINDS[kind].architecture).norm == "rms" else doubled(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_parents_times_their_factor(kind: str) -> None:
    model = parent_model(kind)
    changes = wider(kind)
    parent = sizes_of_config(model.config)
    if parent.experts and parent.experts_per_token:
        # A copy of an expert gets the gradient of its share of the tokens' weight.
        changes = changes | {
            "num_local_experts": 2 * parent.experts,
            "num_experts_per_tok": 2 * parent.experts_per_token,
        }
    child = child_of(model, changes, PLAIN)
    before, after = gradients_of(model), gradients_of(child)
    squares = {name: gradient**2 for name, gradient in before.items()}
    sizes = with_fields(parent, changes)
    first, second = grow_moments(before, squares, KINDS[kind].architecture, parent, sizes, PLAIN)
    assert set(first) == set(after) == set(second)
    for name, gradient in after.items():
        # A bias of GPT-2's keys moves no attention: its gradient is nothing but rounding.
        scale = max(float(gradient.abs().max()), 1e-6)
        assert (gradient - first[name]).abs().max() <= 1e-11 * scale, name
        assert (gradient**2 - second[name]).abs().max() <= 1e-11 * scale**2, name


def test_gradients_of_larger_heads() -> None:
    model = parent_model("llama biases")
    parent = sizes_of_config(model.config)
    child = with_fields(parent, {"head_dim": 8})
    before, after = gradients_of(model), gradients_of(child_of(model, {"head_dim": 8}, PLAIN))
    first, _ = grow_moments(before, before, "llama", parent, child, PLAIN)
    for name, gradient in after.items():
        copied = first[name] != 0
        assert (gradient - first[name])[copied].abs().max() <= 1e-11 * gradient.abs().max(), name


@pytest.mark.parametrize("kind", ["llama untied", "olmo2", "gpt2", "phi3", "mixtral", "gemma2"])
def test_noise_sums_to_zero_and_has_the_power_asked_for(kind: str) -> None:
    model, architecture = parent_model(kind), KINDS[kind].architecture
    parent = sizes_of_config(model.config)
    child = with_fields(parent, doubled(kind))
    tensors = checkpoint_of(model)
    # A hundred times the weights' power, so that what does not sum to zero cannot hide.
    plain, noisy = (grow_weights(tensors, architecture, parent, child, one) for one in (PLAIN, Operator(snr=-20.0)))
    width = GrownAxes(parent, child, PLAIN, architecture)
    for name, clean in plain.items():
        place = place_of(name, architecture)
        dims = [dim for dim, part in enumerate(place.axes) if part in READERS]
        if not dims:
            assert torch.equal(clean, noisy[name]), name
            continue
        growth = width.axis(place.axes[dims[0]])
        assert growth is not None
        noise = (noisy[name] - clean).transpose(0, dims[0])
        sums = torch.zeros(int(growth.index.max()) + 1, noise.shape[1], dtype=noise.dtype)
        assert sums.index_add(0, growth.index, noise).abs().max() < 1e-13
        ratio = float(noise.square().mean() / clean.square().mean())
        assert ratio == pytest.approx(100, rel=0.3), name


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("operator", [Operator(noise=0.5), Operator(snr=-20.0)])
def test_noise_sums_to_zero_over_the_copies_of_an_expert(kind: str, operator: Operator) -> None:
    model, architecture = parent_model(kind), KINDS[kind].architecture
    parent = sizes_of_config(model.config)
    assert parent.experts and parent.experts_per_token
    changes = {"num_local_experts": 3 * parent.experts, "num_experts_per_tok": 3 * parent.experts_per_token}
    tensors = checkpoint_of(model)
    grown = grow_weights(tensors, architecture, parent, with_fields(parent, changes), operator)
    power = signal = 0.0
    for name, tensor in tensors.items():
        place = place_of(name, architecture)
        if place.expert is None or Axis.FFN_READ not in place.axes:
            continue
        copies = [
            grown[name.replace(f"experts.{place.expert}.", f"experts.{place.expert + step * parent.experts}.")]
            for step in range(3)
        ]
        assert (sum(copies) / 3 - tensor).abs().max() < 1e-13
        power += sum(float((copy - tensor).square().mean()) for copy in copies) / 3
        signal += float(tensor.square().mean())
    expected = 100 if operator.snr else 0.25 * 2 / 3
    assert power / signal == pytest.approx(expected, rel=0.15)


def moved(model: Any, steps: int) -> list[dict[str, Tensor]]:
    """Gradients at the first steps of Adam on every token of the vocabulary."""
    tokens = torch.stack([torch.randperm(41, generator=torch.Generator().manual_seed(seed)) for seed in range(6)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = []
    for _ in range(steps):
        found.append({name: gradient.clone() for name, gradient in gradients_of(model, tokens).items()})
        optimizer.step()
    return found


def dead_entries(name: str, gradients: list[dict[str, Tensor]], architecture: str) -> int:
    """Entries of a parameter that no step has moved."""
    alive = sum(gradient[name].abs() for gradient in gradients)
    if Axis.POSITION in place_of(name, architecture).axes:
        alive = alive[:40]
    # The same number added to all scores of a query changes nothing: keys that are not rotated need no bias.
    if name.endswith("c_attn.bias"):
        alive = torch.cat([alive.chunk(3)[0], alive.chunk(3)[2]])
    if name.endswith("query_key_value.bias"):
        alive = alive.view(-1, 3, 4)[:, [0, 2]]
    return int((alive < 1e-12).sum())


@pytest.mark.parametrize("kind", ONE_EACH)
@pytest.mark.parametrize("width", ["zero_pad", "lemon"])
def test_new_units_live_within_two_steps(kind: str, width: Any) -> None:
    model = parent_model(kind)
    child = child_of(model, doubled(kind), Operator(width))
    # The last gamma of a tied model waits for the rows before it, and they for the embedding.
    waits = width == "zero_pad" and table_of(KINDS[kind].architecture).has_post_norms
    gradients = moved(child, 3 if waits else 2)
    assert not {name: n for name in gradients[0] if (n := dead_entries(name, gradients, KINDS[kind].architecture))}


def test_the_new_part_of_larger_heads_lives_within_two_steps() -> None:
    for kind, changes in (("llama biases", {"head_dim": 8}), ("gpt2", {"head_dim": 8, "hidden_size": 32})):
        child = child_of(parent_model(kind), changes, Operator("zero_pad"))
        gradients = moved(child, 2)
        assert not {name: n for name in gradients[0] if (n := dead_entries(name, gradients, KINDS[kind].architecture))}


@pytest.mark.parametrize("kind", ONE_EACH)
def test_zero_exit_blocks_live_and_keep_every_bit(kind: str) -> None:
    model, architecture = parent_model(kind), KINDS[kind].architecture
    child = child_of(model, {"num_hidden_layers": 4}, Operator(placement="even"))
    prefix = table_of(architecture).layer_prefix
    first, second = moved(copy.deepcopy(child), 2)
    new = {name for name in first if name.startswith((f"{prefix}1.", f"{prefix}3."))}
    exits = {name for name in new if table_of(architecture).is_exit(place_of(name, architecture).axes)}
    last = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    has_post_norms = architecture in ("gemma2", "gemma3_text", "olmo2")
    assert exits
    assert not has_post_norms or all(name.endswith(last) for name in exits)
    assert {name for name in new if first[name].any()} == exits
    assert not {name for name in new if dead_entries(name, [first, second], architecture)}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        one, other = (copy.deepcopy(each).to(dtype) for each in (model, child))
        with torch.no_grad():
            assert torch.equal(one(some_tokens()).logits, other(some_tokens()).logits)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_steps_compose(kind: str) -> None:
    model, architecture = parent_model(kind), KINDS[kind].architecture
    first = sizes_of_config(model.config)
    wide, deep = with_fields(first, wider(kind)), with_fields(first, {"num_hidden_layers": 3})
    both = with_fields(wide, {"num_hidden_layers": 3})
    tensors = checkpoint_of(model)

    def grown(operator: Operator, *sizes: Any) -> dict[str, Tensor]:
        found = tensors
        for before, after in pairwise((first, *sizes)):
            found = grow_weights(found, architecture, before, after, operator)
        return found

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return set(one) == set(other) and all(torch.allclose(one[name], other[name], 1e-14, 1e-14) for name in one)

    once = grown(PLAIN, both)
    assert same(once, grown(PLAIN, wide, both))
    assert same(once, grown(PLAIN, deep, both))
    two, four = (with_fields(first, {**doubled(kind), **times(kind, number)}) for number in (2, 4))
    assert same(grown(PLAIN, four), grown(PLAIN, two, four))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in grown(Operator(), first).items())
    moments = grow_moments(tensors, tensors, architecture, first, first, Operator())
    assert all(torch.equal(tensors[name], each[name]) for each in moments for name in tensors)


def times(kind: str, number: int) -> dict[str, Any]:
    return {name: size // 2 * number for name, size in doubled(kind).items()}


@pytest.mark.parametrize("kind", ["llama scaled rotary", "mistral", "gemma3_text", "olmo2", "gpt2", "gpt_neox"])
def test_padding_and_cached_decoding(kind: str) -> None:
    model = parent_model(kind)
    child = child_of(model, wider(kind) | {"num_hidden_layers": 3}, Operator(placement="even"))
    tokens = some_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    before, after = (logits_of(one, tokens, attention_mask=mask) for one in (model, child))
    assert (before - after)[mask.bool()].abs().max() < 1e-11
    whole = logits_of(model, tokens)
    cached = run(child, tokens[:, :6], use_cache=True)
    for step in range(6, 12):
        cached = run(child, tokens[:, step : step + 1], past_key_values=cached.past_key_values, use_cache=True)
        assert (cached.logits[:, 0] - whole[:, step]).abs().max() < 1e-11


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "olmo2", "gpt2", "gpt_neox", "qwen3_moe"])
def test_every_sublayer_writes_the_parents_hidden_state(kind: str) -> None:
    model = parent_model(kind)
    child = child_of(model, wider(kind), Operator(noise=0.5))
    width = child.config.hidden_size
    index = torch.arange(width) % 16
    alpha = (width / (16 * torch.bincount(index)[index].double())).sqrt()
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for one in (model, child):
        for name, module in one.named_modules():
            if name.endswith(("attn", "attention", "mlp", ".0", ".1", "embed_tokens", "feedforward_layernorm")):

                def keep(_m: object, _i: object, output: Any, name: str = name) -> None:
                    seen.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

                handles.append(module.register_forward_hook(keep))
        run(one, some_tokens())
    for handle in handles:
        handle.remove()
    written = {name: pair for name, pair in seen.items() if "pre_" not in name and pair[0].shape[-1] == 16}
    assert len(written) >= 6
    for name, (before, after) in written.items():
        assert (after - alpha * before[..., index]).abs().max() < 1e-11 * before.abs().max(), name


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "mixtral"])
def test_noise_breaks_the_lock_of_copies(kind: str) -> None:
    model = parent_model(kind)
    changes = doubled(kind)
    distances = []
    for operator in (PLAIN, Operator(noise=0.5), Operator(noise=0.0, split="uneven")):
        child = child_of(model, changes, operator)
        start = copy.deepcopy(checkpoint_of(child))
        moved(child, 4)
        name = next(
            name for name in start if name.endswith(("mlp.up_proj.weight", "c_fc.weight", "experts.0.w3.weight"))
        )
        step = checkpoint_of(child)[name] - start[name]
        halves = step.chunk(2, dim=1 if "c_fc" in name else 0)
        distances.append(float((halves[0] - halves[1]).abs().max() / step.abs().max()))
    assert distances[0] < 1e-9
    assert min(distances[1:]) > 1e-2


def test_load_refuses_what_is_not_the_models() -> None:
    tensors = checkpoint_of(parent_model("llama"))
    with pytest.raises(AssertionError):
        load(copy.deepcopy(parent_model("qwen3")), tensors)
    assert difference(parent_model("llama"), parent_model("llama")) == 0
