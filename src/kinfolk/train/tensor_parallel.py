"""Tensor parallelism (Shoeybi et al., arXiv 1909.08053, section 3): processes that read the same sequences share the
matrices of every block, each with some of the heads and some of the intermediate units.

Which matrices are split, and how, is transformers' own plan of an architecture (`base_model_tp_plan` of its config);
the splitting is torch's. Embedding, last norm and head lie outside the blocks and are not split so: FSDP2 shards them
over all processes, and gathers them whole for lookup and loss.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from kinfolk.errors import KinfolkError

OPTION = "--tensor-parallel"

STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
    # A norm of each head: weights that all have, of which each process has the gradient by its own heads. It works on
    # the last dimension, so that it does not matter which of the others is said to be split.
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=1, use_local_output=True),
}
"""Styles of transformers that are torch's, under another name."""

BLOCKS = "layers.*."

_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def refuse_tensor_parallel(config: Any, processes: int, where: str) -> None:
    """KinfolkError where the blocks of such a model cannot be split among so many processes."""
    if processes == 1:
        return
    block_plan(config)
    for name in _SHARED:
        size = getattr(config, name, None)
        if size is not None and size % processes:
            raise KinfolkError(
                f"{name} {size} does not divide among {processes} processes",
                where=f"{OPTION}, {where}",
                fix=f"use a common divisor of {', '.join(_SHARED)}, or other sizes",
            )


def block_plan(config: Any) -> dict[str, str]:
    """transformers' style for each module of a block that is split; KinfolkError where there is none, or no torch one.

    >>> block_plan(transformers.LlamaConfig())["mlp.down_proj"]
    'rowwise'
    """
    of_model: dict[str, str] = config.base_model_tp_plan or {}
    plan = {name.removeprefix(BLOCKS): style for name, style in of_model.items() if name.startswith(BLOCKS)}
    if not plan:
        raise _unknown(config, "has no tensor-parallel plan")
    odd = set(plan.values()) - STYLES.keys() | {name for name in plan if "*" in name}
    if odd:
        raise _unknown(config, f"has a tensor-parallel plan beyond torch's styles ({', '.join(sorted(odd))})")
    return plan


def _unknown(config: Any, problem: str) -> KinfolkError:
    return KinfolkError(
        f"{config.model_type} {problem} in transformers {transformers.__version__}",
        where=OPTION,
        fix="leave the option out: sharding and --replicas serve every architecture",
    )


def split_block(block: nn.Module, plan: dict[str, str], processes: DeviceMesh) -> None:
    """Leave of a block what this one of the processes, in one dimension, holds of it, on its device.

    Every process has the same block before. Its inputs and outputs are whole in each, and so are their gradients.
    """
    modules = dict(block.named_modules())
    styles: dict[str, Any] = {name: STYLES[style]() for name, style in plan.items() if name in modules}
    parallelize_module(block, processes, styles, src_data_rank=None)
    readers = {name.rpartition(".")[0] for name, style in styles.items() if isinstance(style, ColwiseParallel)}
    for name in readers - {""}:
        modules[name].register_forward_pre_hook(partial(_share_input, processes), with_kwargs=True)


def _share_input(processes: DeviceMesh, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Make one tensor of what several matrices read: its gradient is summed once, and not once for each of them."""

    def shared(hidden: Tensor) -> Tensor:
        return DTensor.from_local(hidden, processes, [Replicate()], run_check=False)

    if inputs:
        return (shared(inputs[0]), *inputs[1:]), named
    return inputs, named | {"hidden_states": shared(named["hidden_states"])}
