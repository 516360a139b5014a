"""The config.json of a checkpoint: the parent's is read, the child's follows from it through transformers' classes."""

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoConfig

from kinfolk.checkpoint_folder import config_content
from kinfolk.errors import KinfolkError, in_short
from kinfolk.family.faults import did_you_mean, first_fault
from kinfolk.family.shapes import Shape
from kinfolk.growth.claims import obstacles
from kinfolk.growth.depth import layer_map
from kinfolk.growth.sizes import Sizes, config_fields, sizes_of_config, with_fields
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator

Changes = dict[str, int | bool | str]
"""Fields of the child's config; with `model_type`, which must be the parent's."""

_OUTSIDE_SHAPE = ("vocab_size", "num_local_experts", "num_experts_per_tok")


def read_config(folder: Path) -> Any:
    """The transformers config of a folder, of an architecture that can grow; KinfolkError for any other."""
    content, path = config_content(folder), folder / "config.json"
    if not isinstance(architecture := content.get("model_type"), str):
        raise KinfolkError("is no config of a model: no model_type in it", where=str(path), fix="restore it")
    table_of(architecture)
    if content.get("quantization_config"):
        raise KinfolkError(
            "the weights are quantized", where=str(path), fix="grow the checkpoint that was quantized, then quantize"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        sizes_of_config(config)
    except ValidationError as error:
        fault = first_fault(error, Shape)
        where = f"{path}: {fault.field}" if fault.field else str(path)
        raise KinfolkError(fault.problem, where=where, fix=fault.fix) from error
    except Exception as error:
        raise KinfolkError(f"cannot be used: {in_short(error)}", where=str(path), fix="restore the file") from error
    return config


def child_sizes(config: Any, changes: Changes, operator: Operator) -> Sizes:
    """The sizes that a growth leads to.

    Raises KinfolkError for fields that cannot change, and for sizes that do not hold together or cannot be reached.
    """
    parent = sizes_of_config(config)
    aliases = {own: name for name, own in (getattr(config, "attribute_map", None) or {}).items()}
    aliases |= {"num_experts": "num_local_experts"} | (
        {"moe_intermediate_size": "intermediate_size"} if parent.experts else {}
    )
    known = {*Shape.model_fields, *_OUTSIDE_SHAPE}
    named: dict[str, int | bool] = {}
    for field, value in changes.items():
        if field == "model_type":
            _refuse_other_architecture(config, value)
            continue
        assert not isinstance(value, str)
        name = field if field in known else aliases.get(field, field)
        if name not in known:
            listed = f"known: {', '.join(sorted(known))}"
            fix = listed if hasattr(config, field) else did_you_mean(field, known, "known")
            raise KinfolkError(f"{field} is nothing that grows", where="--to", fix=fix)
        named[name] = value
    try:
        child = with_fields(parent, named)
    except ValidationError as error:
        fault = first_fault(error, Shape)
        raise KinfolkError(
            fault.problem, where=f"--to: {fault.field}" if fault.field else "--to", fix=fault.fix
        ) from error
    found = obstacles(operator, parent, child, config.model_type)
    if found:
        raise KinfolkError(found[0].problem, where=f"--to: {found[0].field}", fix=found[0].fix)
    return child


def child_config(config: Any, child: Sizes, operator: Operator, dtype: torch.dtype) -> Any:
    """The child's config, validated by its class; KinfolkError with the nearest hidden size that it takes."""
    try:
        return _with_sizes(config, child, operator, dtype)
    except KinfolkError as error:
        raise KinfolkError(error.problem, where=f"--to: {error.where}", fix=error.fix) from error
    except Exception as error:
        raise KinfolkError(
            f"transformers refuses the shape: {in_short(error)}", where="--to", fix=_nearest(config, child, operator)
        ) from error


def changes_to(other: Any) -> Changes:
    """The changes that lead to the sizes of another config."""
    sizes = sizes_of_config(other)
    changes: Changes = {"model_type": other.model_type, **sizes.shape.model_dump()}
    outside = zip(_OUTSIDE_SHAPE, (sizes.vocab_size, sizes.experts, sizes.experts_per_token), strict=True)
    return changes | {name: value for name, value in outside if value}


def layer_sources(parent: Sizes, child: Sizes, operator: Operator) -> tuple[int, ...]:
    """The parent's layer of every layer of the child."""
    layers = (parent.shape.num_hidden_layers, child.shape.num_hidden_layers)
    return tuple(layer.source for layer in layer_map(*layers, depth=operator.depth, placement=operator.placement))


def _refuse_other_architecture(config: Any, wanted: int | bool | str) -> None:
    if wanted != config.model_type:
        raise KinfolkError(
            f"the architecture is {wanted}, and the source's is {config.model_type}",
            where="--to",
            fix="give the config of a model of the same architecture",
        )


def _with_sizes(config: Any, child: Sizes, operator: Operator, dtype: torch.dtype) -> Any:
    parent = sizes_of_config(config)
    grown = copy.deepcopy(config)
    for name, value in config_fields(child, config, layer_sources(parent, child, operator)).items():
        # As a config.json would have it: the class checks all of them together below.
        object.__setattr__(grown, (getattr(config, "attribute_map", None) or {}).get(name, name), value)
    content = grown.to_dict()
    content["dtype"] = str(dtype).removeprefix("torch.")
    return type(config).from_dict(content)


def _nearest(config: Any, child: Sizes, operator: Operator) -> str:
    """The nearest hidden size that the config's class takes and that can be grown into."""
    hidden = child.shape.hidden_size
    for distance in range(1, child.shape.num_attention_heads * child.shape.head_dim + 1):
        for size in (hidden + distance, hidden - distance):
            shape = child.shape.model_copy(update={"hidden_size": size})
            candidate = Sizes(shape, child.vocab_size, child.experts, child.experts_per_token)
            if size < 1 or obstacles(operator, sizes_of_config(config), candidate, config.model_type):
                continue
            try:
                _with_sizes(config, candidate, operator, torch.float32)
            except Exception:  # the class's own, of many kinds
                continue
            return f"the nearest shape that it takes has hidden_size {size}"
    return "change the fields it names"
