"""Activations and whole weights of the plan against what torch keeps, to the byte, and against published readings."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fake_cluster import fake_engine
from torch import nn

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.family.spec import Model
from kinfolk.plan.activations import head_bytes, layer_bytes, layer_input_bytes, outside_bytes
from kinfolk.plan.layouts import Layout, Precision, engine_layout, engine_options, lacking
from kinfolk.plan.memory import Portion, memory_by_part
from kinfolk.plan.stages import Token
from kinfolk.plan.tensors import elements, model_tensors
from kinfolk.train.gradients import accumulate
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import stage_loss

VOCABULARY = 40
GROUPED = Shape(
    num_hidden_layers=3,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
)
WIDE_HEADS = Shape(
    num_hidden_layers=2,
    hidden_size=48,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    intermediate_size=72,
    tie_word_embeddings=False,
)


def real_model(shape: Shape, architecture: Architecture) -> Any:
    return new_model(config_for(shape, Model(architecture=architecture, context_length=64), VOCABULARY), seed=0)


@contextmanager
def kept(model: nn.Module) -> Iterator[Counter[str]]:
    """Bytes that autograd saves for the backward pass, by kind, each storage once; the parameters' own are none."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    weights = {tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2}
    seen: dict[int, tuple[str, Any]] = {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            is_cast = tensor.dtype == torch.bfloat16 and {tuple(tensor.shape), tuple(reversed(tensor.shape))} & weights
            # Alive, so that no other gets its place.
            seen[storage._cdata] = ("cast_weights" if is_cast else "activations", storage)
        return tensor

    found: Counter[str] = Counter()
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        yield found
    for kind, storage in seen.values():  # what was freed since has no bytes
        found[kind] += storage.nbytes()


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", [GROUPED, WIDE_HEADS])
def test_activations_are_what_torch_keeps(shape: Shape, architecture: Architecture, precision: Precision) -> None:
    if architecture == "llama" and shape is WIDE_HEADS:
        shape = shape.model_copy(update={"hidden_size": 64})
    model = real_model(shape, architecture)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    rows, context = 3, 50
    tokens = torch.randint(VOCABULARY, (rows, context))
    with kept(model) as found, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        model.base_model(input_ids=tokens, use_cache=False)
    layers = shape.num_hidden_layers
    planned = rows * context * (layers * layer_bytes(shape, architecture, precision) + outside_bytes(shape, precision))
    # Sine and cosine are one row's, whatever the batch.
    stream = 2 if precision == "bfloat16" else 4
    planned -= (rows - 1) * context * 2 * stream * shape.head_dim
    assert found["activations"] == planned
    matrices = model_tensors(shape, VOCABULARY, architecture).hidden_matrices
    assert found["cast_weights"] == (2 * layers * elements(matrices) if precision == "autocast" else 0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_a_checkpointed_layer_keeps_its_input() -> None:
    model = real_model(GROUPED, "llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with kept(model) as found:
        model.base_model(input_ids=torch.randint(VOCABULARY, (2, 32)), use_cache=False)
    outside = outside_bytes(GROUPED, "float32")
    inputs = GROUPED.num_hidden_layers * layer_input_bytes(GROUPED, "float32")
    # What goes into every layer besides its input (positions, sine and cosine) is kept once more: within 10 %.
    assert found["activations"] == pytest.approx(64 * (inputs + outside), rel=0.1)
    layout, load = Layout(8, 8, "float32"), Portion(64)
    whole, saved = (
        memory_by_part(GROUPED, VOCABULARY, "llama", each, load)["activations"]
        for each in (layout, Layout(8, 8, "float32", checkpointing=True))
    )
    layer = layer_bytes(GROUPED, "llama", "float32")
    assert whole - saved == 64 * (GROUPED.num_hidden_layers * (layer - 256) - layer)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_the_head_keeps_two_gradients(precision: Precision) -> None:
    """Of kinfolk's chunked head only the gradients of hidden states and weight survive the forward pass."""
    model = real_model(GROUPED, "llama")
    dtype = torch.bfloat16 if precision == "autocast" else torch.float32
    tokens = torch.randint(VOCABULARY, (2, 33))
    with kept(model) as alone, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        model.base_model(input_ids=tokens[:, :-1], use_cache=False)
    with kept(model) as found, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        stage_loss(model, Token(), dtype)(tokens)
    saved = 4 * (64 * GROUPED.hidden_size + VOCABULARY * GROUPED.hidden_size)
    assert found["activations"] - alone["activations"] == saved
    assert head_bytes(GROUPED, VOCABULARY, 64, precision) > saved
    chunked, whole = (head_bytes(GROUPED, 128_256, 32_768, "bfloat16", chunked=each) for each in (True, False))
    assert whole - chunked == 128_256 * (32_768 * 14 - 2**27 // 128_256 * 6)


# What no sharding divides


def test_the_engine_frees_gathered_weights_and_keeps_what_mixed_says() -> None:
    """Gathered in bfloat16, weights need no casts by autocast, which no sharding would free."""
    rows, context = 2, 15
    tokens = torch.randint(VOCABULARY, (rows, context + 1))  # 30 positions: no activation has the size of a weight
    tensors = model_tensors(GROUPED, VOCABULARY, "llama")
    shapes = real_model(GROUPED, "llama")
    with fake_engine(4) as engine:
        gathered, cast = (stage_loss(real_model(GROUPED, "llama"), Token(), torch.bfloat16) for _ in range(2))
        engine.distribute(gathered, "bfloat16")
        engine.distribute(cast, "float32")
        found = []
        for objective in (gathered, cast):
            with kept(shapes) as saved, engine.autocast("bfloat16"):
                objective(tokens)
            found.append(saved)
    assert found[0]["cast_weights"] == 0
    assert found[1]["cast_weights"] == 2 * tensors.layers * elements(tensors.hidden_matrices)
    # Sine and cosine are one row's; the head keeps the gradients of hidden states and of its weight.
    layers = GROUPED.num_hidden_layers
    planned = rows * context * (layers * layer_bytes(GROUPED, "llama", "mixed") + outside_bytes(GROUPED, "mixed"))
    planned -= (rows - 1) * context * 2 * 4 * GROUPED.head_dim
    planned += 4 * GROUPED.hidden_size * (rows * context + VOCABULARY)
    # The last norm's weight, gathered as long as the pass takes, and the token that only is a target.
    planned += 4 * GROUPED.hidden_size + 8 * rows
    assert found[0]["activations"] == planned
    parts = [
        memory_by_part(GROUPED, VOCABULARY, "llama", engine_layout(gpus), Portion(32))["cast_weights"]
        for gpus in (4, 1)
    ]
    assert parts == [0, found[1]["cast_weights"]]


def test_gradients_of_several_micro_batches_are_whole_on_every_gpu() -> None:
    model = real_model(GROUPED, "llama")
    micro_batches = list(torch.randint(VOCABULARY, (3, 1, 17)))
    tensors = model_tensors(GROUPED, VOCABULARY, "llama")
    with fake_engine(4) as engine:
        objective = stage_loss(model, Token(), torch.float32)
        engine.distribute(objective)
        accumulate(objective, _Watched(micro_batches, objective), 48, "float32", engine)
        whole = _Watched.largest
    assert whole == 4 * tensors.parameters
    load = Portion(16, micro_batches=3)
    assert memory_by_part(GROUPED, VOCABULARY, "llama", engine_layout(4), load)["whole_gradients"] == whole
    once = memory_by_part(GROUPED, VOCABULARY, "llama", engine_layout(4), Portion(48))["whole_gradients"]
    assert once == 4 * (2 * elements(tensors.block) + elements(tensors.outside))


class _Watched(list[torch.Tensor]):
    """Micro-batches that look, before each but the first, at the gradients that FSDP2 keeps whole."""

    largest = 0

    def __init__(self, batches: list[torch.Tensor], objective: nn.Module) -> None:
        super().__init__(batches)
        self._objective = objective

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in super().__iter__():
            states = [getattr(module, "_get_fsdp_state", lambda: None)() for module in self._objective.modules()]
            groups = [state._fsdp_param_group for state in states if state is not None and state._fsdp_param_group]
            whole = [
                parameter.unsharded_accumulated_grad
                if parameter.unsharded_accumulated_grad is not None
                else parameter._unsharded_param.grad
                for group in groups
                for parameter in group.fsdp_params
                if hasattr(parameter, "_unsharded_param")
            ]
            held = sum(gradient.numel() * gradient.element_size() for gradient in whole if gradient is not None)
            _Watched.largest = max(_Watched.largest, held)
            yield batch


# Published


LLAMA_8B = Shape(
    num_hidden_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=14336,
    tie_word_embeddings=False,
)
LLAMA_70B = LLAMA_8B.model_copy(
    update={
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "intermediate_size": 28672,
    }
)


def test_what_torchtitan_measured_of_more_gpus() -> None:
    """Llama 3.1 8B, FSDP2 with weights gathered in bfloat16: 82.4 GiB on each of 8 H100 and 67.0 on each of 128, with
    all else alike (pytorch/torchtitan, benchmarks/llama3_h100_202412, tables 1 and 3)."""
    few, many = (
        memory_by_part(LLAMA_8B, 128_256, "llama", Layout(gpus, gpus, "bfloat16"), Portion(16_384))["total"]
        for gpus in (8, 128)
    )
    assert (few - many) / 2**30 == pytest.approx(82.4 - 67.0, rel=0.1)


def test_what_torchtitan_trained_on_gpus_of_80_gb() -> None:
    """On 64 A100 of 80 GB, a sequence of 8,192 each: Llama 3 70B with full checkpointing (pytorch/torchtitan,
    docs/performance.md). It fits, and without checkpointing or as the engine is it does not."""
    load = Portion(8192)

    def total(layout: Layout) -> float:
        return memory_by_part(LLAMA_70B, 128_256, "llama", layout, load)["total"]

    assert total(Layout(64, 64, "bfloat16", checkpointing=True)) < 80e9
    assert total(Layout(64, 64, "bfloat16")) > 3 * 80e9
    assert total(engine_layout(1024)) > 141e9


# Parts


def test_muon_keeps_one_moment_of_the_matrices() -> None:
    tensors = model_tensors(LLAMA_8B, 128_256, "llama")
    adamw, muon = (
        memory_by_part(LLAMA_8B, 128_256, "llama", engine_layout(1), Portion(2048), muon=each) for each in (False, True)
    )
    assert adamw["optimizer"] == 8 * tensors.parameters
    assert adamw["optimizer"] - muon["optimizer"] == 4 * 32 * elements(tensors.hidden_matrices)
    assert adamw["gathered"] == adamw["whole_gradients"] == 0  # one GPU has everything once
    assert sum(size for part, size in muon.items() if part != "total") == pytest.approx(muon["total"])


def test_what_the_engine_lacks() -> None:
    assert lacking(engine_layout(64)) == lacking(engine_layout(1)) == []
    assert lacking(engine_layout(64, replicas=8, checkpointing=True, reduces_each=True)) == []
    assert engine_options(engine_layout(64)) == []
    assert engine_options(engine_layout(64, 8, reduces_each=True)) == ["--replicas 8", "--reduce-each"]
    assert lacking(Layout(64, 8, "bfloat16", reduces_each=True)) == ["a residual stream in bfloat16"]
