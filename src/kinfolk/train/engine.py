"""Device, precision and sharding, applied from outside the model.

One process on a CPU or a GPU, and many under torchrun with FSDP2, run the same code: the engine is what differs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from kinfolk.family.shapes import Shape
from kinfolk.train.layout import Layout
from kinfolk.train.tensor_parallel import block_plan, split_block

T = TypeVar("T")

Precision = Literal["float32", "bfloat16"]

_PATIENCE = timedelta(days=30)
"""How long processes wait for one that tokenises, grows or evaluates; one that dies is noticed at once."""


class MainStopped(BaseException):
    """Raised in the other processes of a job when the main one has stopped: it says why, they need not."""


@dataclass(frozen=True)
class TensorGroup:
    """Processes that read the same sequences, and share the matrices of every block."""

    members: DeviceMesh
    """In one dimension, this process with them."""
    others: DeviceMesh
    """This process and those that have its place in the other groups: over them blocks are sharded, in as many rows as
    there are replicas."""


@dataclass(frozen=True)
class Engine:
    """Where this process computes, and with whom."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: DeviceMesh | None = None
    """The processes, in as many rows as there are replicas; in one dimension where there is one."""
    layout: Layout = field(default_factory=Layout)
    tensor: TensorGroup | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    """Threads that this process may use."""
    control: dist.ProcessGroup | None = None
    """The processes once more, talking through gloo: for agreements, and for waits longer than NCCL allows."""
    saving: dist.ProcessGroup | None = None
    """And again, for checkpoints that are written by a thread of their own."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the shared files."""
        return self.rank == 0

    @property
    def data_parallel(self) -> int:
        """Into how many shares the sequences of a step are divided: those of one tensor group read the same."""
        return self.world_size // self.layout.tensor_parallel

    @property
    def data_rank(self) -> int:
        """Which of these shares this process reads."""
        return self.rank // self.layout.tensor_parallel

    @property
    def counted(self) -> float:
        """1 in the process of each tensor group whose sums are counted, and 0 in the others, which have the same."""
        return float(self.rank % self.layout.tensor_parallel == 0)

    def autocast(self, precision: Precision) -> AbstractContextManager[None]:
        """Matrix products in bfloat16 where asked for; weights, norms and losses stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

    def use_threads(self, shape: Shape) -> None:
        """Use one thread for a small model on a CPU, and all of them otherwise.

        In bfloat16 a second thread costs up to half of the speed at hidden sizes of 48 to 96 and gains nothing up to
        256 (docs/results.md, section 3): the products are too short to pay for waking it. A rule and not a measurement,
        because sums depend on the number of threads, and the same family shall give the same bytes: for the same reason
        whatever is computed of a stage, its member too, begins with this and does not rely on what came before.

        `shape` may be the config of a transformers model.
        """
        torch.set_num_threads(1 if self.device.type == "cpu" and shape.hidden_size < 256 else self.threads)

    def use_attention(self, model: PreTrainedModel, shape: Shape, precision: Precision, context_length: int) -> None:
        """Have attention computed by plain matrix products where these are faster than torch's fused kernel.

        In bfloat16 on a CPU they are, up to 128 tokens of context, and 256 for heads of 32 and hidden sizes of 128 or
        more; in float32 they are not (docs/results.md, section 10). A rule and not a measurement, as for threads.
        """
        longest = 256 if shape.head_dim >= 32 and shape.hidden_size >= 128 else 128
        if self.device.type == "cpu" and precision == "bfloat16" and context_length <= longest:
            model.set_attn_implementation("eager")

    def place(self, model: nn.Module) -> None:
        """Move a model to this process's device."""
        model.to(self.device)

    def distribute(self, objective: nn.Module, precision: Precision = "float32") -> None:
        """Move a stage's model to the device, or shard it block by block over the devices of all processes (FSDP2).

        Sharding moves what it shards, one block at a time: no device ever holds the whole model. Under bfloat16 the
        blocks travel and are reduced as torchtitan does it: gathered in bfloat16, gradients summed in float32. Under
        tensor parallelism a block is split within the group first, and a process's part of it sharded over the groups.
        """
        model: Any = objective.model
        blocks = _blocks(model)
        if self.layout.recompute:
            # transformers 5.2x gave it a new name.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False, "preserve_rng_state": False})
        if self.layout.compile:
            for block in blocks:
                block.compile()
        if self.mesh is None:
            self.place(objective)
            return
        in_blocks = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # the residual stream stays float32, as it does in one process
        )
        plan = block_plan(model.config) if self.tensor else {}
        for block in blocks:
            if self.tensor:
                split_block(block, plan, self.tensor.members)
            fully_shard(block, mesh=self.tensor.others if self.tensor else self.mesh, mp_policy=in_blocks)
        fully_shard(objective, mesh=self.mesh)

    def spread(self, model: nn.Module) -> None:
        """Move a model that is only read to the device, or shard its blocks over the devices of all processes (FSDP2).

        Embedding, last norm and head are then whole in each process, so that parts of the model can be called alone.
        """
        if self.mesh is not None:
            for block in _blocks(model):
                fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
        self.place(model)

    def synchronise_gradients(self, objective: nn.Module, last: bool) -> None:
        """Reduce gradients over the processes with the last micro-batch of a step only, unless asked to with each."""
        if isinstance(objective, FSDPModule):
            objective.set_requires_gradient_sync(last or self.layout.reduce_each)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values`, which lie on the CPU, over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, in the order of their ranks, in each of them."""
        if self.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine, group=self.control)
        return found

    def broadcast(self, values: Tensor) -> Tensor:
        """The main process's `values`, which lie on the device, in each: what is decided by them, all decide alike."""
        if self.world_size > 1:
            dist.broadcast(values, src=0)
        return values

    @property
    def saves_in_background(self) -> bool:
        """Whether checkpoints are written while training goes on."""
        asked = self.layout.background_saving
        return self.device.type != "cpu" if asked is None else asked

    def on_main(self, work: Callable[[], None]) -> None:
        """Have the main process do `work` while the others wait; if it fails there, all of them stop.

        The main process raises what `work` raised, the others MainStopped.
        """
        if self.is_main:
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # the others may be gone already, and what happened here matters more
                    self.sum(torch.ones(1))
                raise
        if self.sum(torch.zeros(1)).item():
            raise MainStopped

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in the main process, in each of them; if it fails there, all of them stop."""
        found: list[T] = []
        self.on_main(lambda: found.append(work()))
        first: list[T] = self.gather(found)[0]
        return first[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives in every process, in the order of their ranks, in each; if it fails in one, all stop.

        The main process raises what went wrong, of the lowest rank, and the others MainStopped.
        """
        if self.world_size == 1:
            return [work()]
        mine: tuple[T | None, BaseException | None]
        try:
            mine = work(), None
        except BaseException as error:
            mine = None, error
        try:
            everyones: list[tuple[T, BaseException | None]] = self.gather(mine)
        except RuntimeError:
            if mine[1] is not None:  # the others may be gone already, and what happened here matters more
                raise mine[1] from None
            raise
        failure = next((error for _, error in everyones if error is not None), None)
        if failure is not None:
            raise failure if self.is_main else MainStopped
        return [value for value, _ in everyones]


def _blocks(model: Any) -> list[nn.Module]:
    """The layers of a transformers model, as it names them itself."""
    return [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]


def single_engine() -> Engine:
    """The engine of a process that works alone on the best device it has."""
    return Engine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def alone() -> Engine:
    """The engine of work that one process does on the CPU, whatever the job around it."""
    return Engine(torch.device("cpu"))


@contextmanager
def start_engine(layout: Layout = Layout()) -> Iterator[Engine]:  # noqa: B008 (frozen)
    """The engine of this process: alone, or one rank of a torchrun job (gloo on CPUs, NCCL on GPUs).

    KinfolkError where the processes cannot be laid out as asked.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    layout.check(world_size)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    with _threads_left_as_they_are():
        if world_size == 1:
            yield Engine(device, layout=layout)
            return
        dist.init_process_group("nccl" if on_gpu else "gloo")
        try:
            mesh, tensor = _meshes(device.type, world_size, layout)
            control, saving = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
            yield Engine(device, rank, world_size, mesh, layout, tensor, control=control, saving=saving)
        finally:
            dist.destroy_process_group()


@contextmanager
def _threads_left_as_they_are() -> Iterator[None]:
    """Whoever calls from a program of their own finds torch's number of threads as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _meshes(device: str, world_size: int, layout: Layout) -> tuple[DeviceMesh, TensorGroup | None]:
    """One dimension to shard over; or two, to replicate over the first and shard over the second."""
    sharing = world_size // layout.replicas
    names, sizes = (
        (("replicate", "shard"), (layout.replicas, sharing)) if layout.replicas > 1 else (("shard",), (sharing,))
    )
    mesh = init_device_mesh(device, sizes, mesh_dim_names=names)
    if layout.tensor_parallel == 1:
        return mesh, None
    finer = (*sizes[:-1], sharing // layout.tensor_parallel, layout.tensor_parallel)
    both = init_device_mesh(device, finer, mesh_dim_names=(*names, "tensor"))
    return mesh, TensorGroup(both["tensor"], both[names])


def resolve_precision(asked: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """The precision of matrix products: what was asked for, or the faster one for this device.

    On CPUs with native bfloat16 products, autocast gains 1.2 to 1.6 x from a hidden size of 48 to 160 on one thread
    (docs/results.md, section 3).
    """
    return fastest_precision(device) if asked == "auto" else asked


def fastest_precision(device: torch.device) -> Precision:
    """The precision in which this device multiplies matrices fastest without losing range."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_native_bfloat16()
    return "bfloat16" if native else "float32"


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
