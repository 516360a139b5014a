import pytest
from tiny_models import empty_model, shape

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture
from kinfolk.growth.axes import Axis
from kinfolk.growth.names import axes_of, in_layer, tied_alias
from kinfolk.growth.sizes import axis_size


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_axes_of_its_size(architecture: Architecture, tied: bool) -> None:
    # Sizes that are all different, so that no axis can be taken for another.
    sizes = shape(hidden=10, heads=6, groups=3, ffn=14, tied=tied)
    for name, parameter in empty_model(architecture, sizes, bias=True).named_parameters():
        axes, layer = axes_of(name, architecture)
        assert (layer is not None) == name.startswith("model.layers.")
        wanted = tuple(axis_size(axis, sizes) for axis in axes)
        assert tuple(size or 61 for size in wanted) == tuple(parameter.shape), name


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.x.mlp.up_proj.weight",
        "lm_head.weights",
    ],
)
def test_unknown_parameters_are_named(name: str) -> None:
    with pytest.raises(KinfolkError, match=name.replace(".", r"\.")):
        axes_of(name, "llama")


def test_layer_numbers_are_whole_numbers_not_prefixes() -> None:
    assert axes_of("model.layers.11.self_attn.o_proj.weight", "llama") == ((Axis.HIDDEN_WRITE, Axis.QUERY_READ), 11)
    assert in_layer("model.layers.1.input_layernorm.weight", 11, "llama") == "model.layers.11.input_layernorm.weight"


def test_the_tied_head_is_the_embedding() -> None:
    assert tied_alias("lm_head.weight", "llama") == "model.embed_tokens.weight"
    assert tied_alias("model.norm.weight", "llama") is None
