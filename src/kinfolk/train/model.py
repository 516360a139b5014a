"""Models are transformers' own, unchanged: a shape becomes a config, a config becomes a model."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config
from transformers.initialization import no_init_weights

from kinfolk.errors import KinfolkError
from kinfolk.family.rate_transfer import Factors, factors_of
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model


def config_for(shape: Shape, model: Model, vocab_size: int, separator: int | None = None) -> PreTrainedConfig:
    """The stock transformers config of one member; `separator` is the token id that begins and ends documents."""
    make: dict[str, Any] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    config: PreTrainedConfig = make[model.architecture](
        **shape.model_dump(),
        vocab_size=vocab_size,
        max_position_embeddings=model.context_length,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        initializer_range=initial_deviation(shape.hidden_size),
        attention_bias=False,
        attention_dropout=0.0,
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=None,
        use_cache=True,
        dtype="float32",
    )
    return config


def initial_deviation(hidden_size: int) -> float:
    """The "small init" of Nguyen and Salazar (arXiv 1910.05895): sqrt(2 / 5d), 0.0099 at d = 4,096.

    A constant 0.02 would start the tiny members of a ladder an order of magnitude too small.
    """
    return float((2 / (5 * hidden_size)) ** 0.5)


def new_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with fresh float32 weights on the CPU, a pure function of config and seed."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    finally:
        torch.random.set_rng_state(state)
    return model


@torch.no_grad()
def rescale_new_model(model: PreTrainedModel, factors: Mapping[str, Factors], base: Shape) -> None:
    """Give fresh weights the deviations, and gammas the values, that the factors make of the base's."""
    config: Any = model.config
    drawn = initial_deviation(base.hidden_size) / initial_deviation(config.hidden_size)
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() > 1
        parameter.mul_(factors_of(name, factors).initial * (drawn if is_matrix else 1.0))


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model on the CPU whose weights are whatever the memory held, to be overwritten from a checkpoint."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.tie_weights()  # which initialisation would have done
    return model


def parameters_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters by name, detached; a tied head appears once, as the embedding."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_parameters(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model's parameters of the same names, all of them."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise KinfolkError(f"these tensors do not fit the model: {', '.join(odd[:4])}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def is_token_ready(config: PreTrainedConfig) -> bool:
    """Whether a model is a language model, as its config says: only one taken from a patch-level stage says no."""
    return getattr(config, "token_ready", True) is not False


def check_token_ready(ready: bool, where: str, force: bool = False) -> None:
    """Refuse a model that was trained on patches last, unless forced; KinfolkError.

    Such weights predict unordered tokens from means of embeddings: they are a step on the way, not a language model.
    """
    if not ready and not force:
        raise KinfolkError(
            "these weights were trained on patches last and are no language model yet (token_ready: false)",
            where=where,
            fix="use a stage or member that was trained on tokens since; --force takes them all the same, to debug",
        )
