"""Matrices of linear layers in 8 or 4 bits, in safetensors that stock transformers loads.

int8 is torchao's weight-only quantisation (one scale a row). int4 is compressed-tensors' packed format (symmetric, a
scale for every group of a row), which vLLM reads too: torchao's own packed int4 layouts exist for GPUs alone, and the
one that runs anywhere stores a byte for every four bits. Embeddings, norms and the head stay as they are.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kinfolk.checkpoint_folder import config_content
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_config, quiet, without_bars
from kinfolk.export.extras import required

Bits = Literal["int8", "int4"]

GROUPS = (128, 64, 32)
"""Values that share a scale in int4; the largest that divides the rows of every layer."""


def plan_quantised(folder: Path, bits: Bits) -> int | None:
    """Look at a checkpoint folder; returns the size of int4's groups. KinfolkError for what cannot be quantised."""
    required("torchao", "quantise") if bits == "int8" else required("compressed_tensors", "quantise")
    config = config_content(folder)
    if config.get("quantization_config"):
        raise KinfolkError("the weights are quantised already", where=str(folder), fix="export the original checkpoint")
    if bits == "int8":
        return None
    widths = {layer.in_features for layer in _linear_layers(_empty(folder))}
    group = next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)
    if group is None:
        raise KinfolkError(
            f"int4 shares scales among {GROUPS[-1]} values of a row, and rows of {', '.join(map(str, sorted(widths)))} "
            "are no whole groups",
            where=str(folder),
            fix="use --format int8 or gguf-q8_0",
        )
    return group


def write_quantised(folder: Path, target: Path, bits: Bits, group: int | None) -> None:
    """Write the quantised checkpoint, without tokenizer and card, into the folder `target`."""
    with quiet():
        if bits == "int8":
            _torchao(folder).save_pretrained(target, safe_serialization=True)
        else:
            assert group is not None
            _write_compressed(folder, target, group)


def _torchao(folder: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    make: Any = TorchAoConfig
    return _loaded(AutoModelForCausalLM, folder, quantization_config=make(Int8WeightOnlyConfig()))


def _write_compressed(folder: Path, target: Path, group: int) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = _loaded(AutoModelForCausalLM, folder)
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
    form = "pack-quantized"
    settings = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights, format=form)},
        ignore=["lm_head"],
        format=form,
        quantization_status="frozen",
    )
    apply_quantization_config(model, settings, show_progress=False)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "quantization_scheme", None) is not None:
                groups = module.weight.unflatten(-1, (-1, group))  # (rows, groups, values of a group)
                scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
                module.weight_scale.copy_(scale)
    compressor = ModelCompressor(quantization_config=settings)
    with without_bars():
        compressor.compress_model(model)
    model.save_pretrained(target, safe_serialization=True)
    compressor.update_config(target)


def _loaded(auto: Any, folder: Path, **options: Any) -> Any:
    try:
        return auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        ).eval()
    except Exception as error:
        raise KinfolkError(
            f"the checkpoint cannot be quantised: {error}", where=str(folder), fix="check it with kinfolk evaluate"
        ) from error


def _empty(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"), quiet():
        return make(load_config(folder))


def _linear_layers(model: Any) -> list[nn.Linear]:
    """The linear layers but for the head."""
    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
