"""Grow a live transformers model: the same operators, with both models in memory."""

from typing import Any

from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from kinfolk.growth.configs import Changes, child_config, child_sizes
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.sizes import sizes_of_config
from kinfolk.growth.tables import table_of
from kinfolk.plan.stages import Operator


def grow_model(model: PreTrainedModel, changes: Changes, operator: Operator) -> PreTrainedModel:
    """A larger model on the parent's device and in its dtype; the parent stays as it is.

    `changes` are fields of the child's config, as in `kinfolk grow --to`. Raises KinfolkError for what cannot grow.
    """
    config: Any = model.config
    table_of(config.model_type)
    child = child_sizes(config, changes, operator)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # A mixture's experts are one tensor in a live model, and one each in a checkpoint, which growth knows.
    stored = revert_weight_conversion(model, parameters)
    grown = grow_weights(stored, config.model_type, sizes_of_config(config), child, operator)
    make: Any = type(model).from_pretrained
    larger: PreTrainedModel = make(
        None, config=child_config(config, child, operator, model.dtype), state_dict=grown, dtype=model.dtype
    )
    larger.to(model.device)  # type: ignore[arg-type]
    larger.train(model.training)
    return larger
