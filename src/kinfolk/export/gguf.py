"""A Llama-like checkpoint as one GGUF file, tensor by tensor, with the names of the gguf package's own map.

GGUF's "llama" rotates neighbouring pairs of coordinates where transformers rotates halves, so that rows of queries and
keys are put in another order; Qwen's models rotate halves in both.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinfolk.checkpoint_folder import config_content, no_weights
from kinfolk.errors import KinfolkError
from kinfolk.export.extras import required
from kinfolk.export.gguf_tokenizer import GgufTokenizer, read_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from numpy.typing import NDArray

Precision = Literal["f32", "f16", "q8_0", "q4_0"]
"""How matrices are stored; q8_0 and q4_0 hold blocks of 32 values with a scale each."""

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF's name for each of transformers' architectures."""

_SWAPPED = ("llama",)
"""Of GGUF's architectures, those that rotate neighbouring pairs."""


@dataclass(frozen=True)
class GgufPlan:
    """A checkpoint that can be written as GGUF: everything that could be refused has been looked at."""

    folder: Path
    config: dict[str, Any]
    tokenizer: GgufTokenizer
    names: dict[str, str]
    """GGUF's name of every tensor, by transformers' name."""
    files: dict[str, Path]
    """Where the tensors are."""

    @property
    def architecture(self) -> str:
        return ARCHITECTURES[self.config["model_type"]]

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])


def plan_gguf(folder: Path) -> GgufPlan:
    """Look at a checkpoint folder. KinfolkError for whatever GGUF, or this export, cannot hold."""
    required("gguf", "gguf")
    config = config_content(folder)
    _check_config(config, str(folder))
    files = _tensor_files(folder)
    tied = bool(config.get("tie_word_embeddings"))
    wanted = [
        name for name in files if not (tied and name == "lm_head.weight") and not name.endswith("rotary_emb.inv_freq")
    ]
    tokenizer = read_tokenizer(folder, int(config["vocab_size"]))
    return GgufPlan(folder, config, tokenizer, _names(wanted, config, str(folder)), files)


def write_gguf(plan: GgufPlan, path: Path, precision: Precision, progress: Callable[[int, int], None]) -> int:
    """Write the file; returns how many matrices have rows that are no whole blocks, and so are stored as f16.

    One tensor is in memory at a time. KinfolkError for weights that are not finite in the chosen precision.
    """
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, plan.architecture)
    file_types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
        "q4_0": LlamaFileType.MOSTLY_Q4_0,
    }
    _add_metadata(writer, plan, int(file_types[precision]))
    kept, types = 0, {}
    shapes = dict(_shapes(plan))
    for name, shape in shapes.items():
        types[name], fell_back = _storage(plan.names[name], shape, precision)
        kept += fell_back
        _announce(writer, plan.names[name], shape, types[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, name in enumerate(shapes):
            writer.write_tensor_data(_stored(plan, name, types[name]))
            progress(done + 1, len(shapes))
    finally:
        writer.close()
    return kept


def _check_config(config: dict[str, Any], where: str) -> None:
    """Refuse what the file could not say, or llama.cpp would pass over."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise KinfolkError(
            f"GGUF export knows no {kind or 'architecture'}",
            where=f"{where}: config.json: model_type",
            fix=f"export {', '.join(ARCHITECTURES)}; llama.cpp's own converter knows more",
        )
    if config.get("quantization_config"):
        raise KinfolkError("the weights are quantised already", where=where, fix="export the original checkpoint")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    odd = {
        f"rope_type {scaling}": scaling != "default",
        "a sliding window": bool(config.get("use_sliding_window", config.get("sliding_window") is not None))
        and (config.get("sliding_window") or 0) < config.get("max_position_embeddings", 0),
        "biases in the feed-forward": bool(config.get("mlp_bias")),
        f"the activation {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    for what, is_so in odd.items():
        if is_so:
            raise KinfolkError(
                f"GGUF export does not know {what}", where=f"{where}: config.json", fix="use llama.cpp's own converter"
            )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of every tensor."""
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise no_weights(folder)
    found: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise KinfolkError(f"cannot be read: {error}", where=str(path), fix="copy the file again") from error
    return found


def _names(names: list[str], config: dict[str, Any], where: str) -> dict[str, str]:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, get_tensor_name_map

    wanted = ARCHITECTURES[config["model_type"]]
    architecture = next(each for each, name in MODEL_ARCH_NAMES.items() if name == wanted)
    assert isinstance(architecture, MODEL_ARCH) and architecture in MODEL_TENSORS
    known = get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    unknown = [name for name, new in found.items() if new is None]
    if unknown:
        raise KinfolkError(
            f"GGUF has no name for {len(unknown)} tensors of a {wanted}, first {unknown[0]}",
            where=where,
            fix="export a checkpoint of a stock architecture",
        )
    return {name: new for name, new in found.items() if new is not None}


def _add_metadata(writer: "GGUFWriter", plan: GgufPlan, file_type: int) -> None:
    from gguf import GGML_QUANT_VERSION

    config, tokenizer = plan.config, plan.tokenizer
    writer.add_type("model")
    writer.add_name(plan.folder.resolve().name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or config["num_attention_heads"]))
    writer.add_key_length(plan.head_size)
    writer.add_value_length(plan.head_size)
    writer.add_rope_dimension_count(plan.head_size)
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    tokenizer.add_to(writer)


def _shapes(plan: GgufPlan) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    for name in plan.names:
        with safe_open(plan.files[name], framework="pt") as file:
            yield name, tuple(file.get_slice(name).get_shape())


def _storage(name: str, shape: tuple[int, ...], precision: Precision) -> tuple["GGMLQuantizationType", bool]:
    """The type that a tensor is stored as, and whether it could not be the one asked for."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or precision == "f32":
        return GGMLQuantizationType.F32, False
    wanted = GGMLQuantizationType[precision.upper()]
    if precision == "q4_0" and name in ("token_embd.weight", "output.weight"):
        # Four bits hurt most where every token is looked up; llama.cpp spares these too.
        wanted = GGMLQuantizationType.Q8_0
    if shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        return GGMLQuantizationType.F16, True
    return wanted, False


def _announce(writer: "GGUFWriter", name: str, shape: tuple[int, ...], kind: "GGMLQuantizationType") -> None:
    """Tell the writer of a tensor that comes later."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    plain: dict[GGMLQuantizationType, np.dtype[Any]] = {
        GGMLQuantizationType.F32: np.dtype(np.float32),
        GGMLQuantizationType.F16: np.dtype(np.float16),
    }
    if kind in plain:
        size = int(np.prod(shape)) * plain[kind].itemsize
        writer.add_tensor_info(name, shape, plain[kind], size)
        return
    block, size_of_block = GGML_QUANT_SIZES[kind]
    size = int(np.prod(shape)) // block * size_of_block
    writer.add_tensor_info(name, quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8), size, raw_dtype=kind)


def _stored(plan: GgufPlan, name: str, kind: "GGMLQuantizationType") -> "NDArray[np.generic]":
    """The values of a tensor as GGUF stores them."""
    import numpy as np
    from gguf.quants import quantize
    from safetensors import safe_open

    with safe_open(plan.files[name], framework="pt") as file:
        values: NDArray[np.float32] = file.get_tensor(name).float().numpy()
    if plan.architecture in _SWAPPED:
        values = _with_pairs_as_neighbours(values, plan.names[name], plan.config)
    stored: NDArray[np.generic] = quantize(values, kind)
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise KinfolkError(
            f"{name} holds values that are not finite, or too large for {kind.name}",
            where=str(plan.files[name]),
            fix="use --format gguf-f32, or a checkpoint from before the run diverged",
        )
    return stored


def _with_pairs_as_neighbours(
    values: "NDArray[np.float32]", name: str, config: dict[str, Any]
) -> "NDArray[np.float32]":
    """Rows of queries and keys in the order in which rotated pairs are neighbours; other tensors unchanged.

    values (heads x head size, ...); within a head, row i and row i + half of the head become rows 2 i and 2 i + 1.
    """
    heads = {
        ".attn_q.": int(config["num_attention_heads"]),
        ".attn_k.": int(config.get("num_key_value_heads") or config["num_attention_heads"]),
    }
    for part, count in heads.items():
        if part in name:
            split = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            return split.swapaxes(1, 2).reshape(values.shape)
    return values


def copy_config(source: Path, target: Path) -> None:
    """The config of a GGUF's folder: what GGUF cannot say of the shape (a head size of its own) is in there."""
    content = config_content(source)
    (target / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
