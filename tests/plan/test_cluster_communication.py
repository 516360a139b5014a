"""Traffic of the plan against what FSDP2 really sends and against simulated rings; times against published ones."""

from collections import Counter
from typing import Any

import pytest
import torch
from fake_cluster import fake_engine
from hypothesis import given
from hypothesis import strategies as st
from test_cluster_memory import GROUPED, LLAMA_8B, VOCABULARY, real_model
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from kinfolk.plan.cluster.communication import (
    collective_seconds,
    replica_seconds,
    sending_seconds,
    traffic,
    waiting,
)
from kinfolk.plan.cluster.description import load_cluster
from kinfolk.plan.cluster.step import Work, step_on
from kinfolk.plan.layouts import Layout, engine_layout
from kinfolk.plan.stages import Token
from kinfolk.plan.tensors import ModelTensors, model_tensors
from kinfolk.train.gradients import accumulate
from kinfolk.train.objective import stage_loss

H100 = load_cluster("h100")
TENSORS = model_tensors(GROUPED, VOCABULARY, "llama")


class Sent(TorchDispatchMode):
    """Bytes of the whole tensors that collective operations gather, scatter and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        whole = {"c10d._allgather_base_.default": 0, "c10d._reduce_scatter_base_.default": 1}.get(str(func))
        if whole is not None:
            self.bytes[str(func).split("_")[1]] += args[whole].numel() * args[whole].element_size()
        elif str(func) == "c10d.allreduce_.default":
            self.bytes["allreduce"] += sum(tensor.numel() * tensor.element_size() for tensor in args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_engine_sends_what_the_plan_says(replicas: int) -> None:
    """Three micro-batches on four GPUs, or on two groups of them."""
    micro_batches = list(torch.randint(VOCABULARY, (3, 1, 17)))
    gpus = 4 * replicas
    with fake_engine(gpus, replicas=replicas) as engine:
        objective = stage_loss(real_model(GROUPED, "llama"), Token(), torch.bfloat16)
        engine.distribute(objective, "bfloat16")
        with Sent() as sent:
            accumulate(objective, micro_batches, 48, "bfloat16", engine)
    planned = traffic(TENSORS, engine_layout(gpus, replicas), micro_batches=3, muon=False)
    # Of what is gathered or scattered, each GPU has its own quarter already.
    assert sent.bytes["allgather"] * 3 / 4 == planned.gathered_forward + planned.gathered_backward
    assert sent.bytes["reduce"] * 3 / 4 == planned.scattered
    # An all-reduce of M bytes over 2 replicas brings each 2 x 1/2 M.
    assert sent.bytes["allreduce"] == planned.summed
    assert (planned.summed > 0) == (replicas > 1) and planned.muon == 0


def test_all_in_bfloat16_and_reduced_each_time_is_what_the_plan_says() -> None:
    """What the engine does not do, by FSDP2 itself."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with fake_engine(8, replicas=2) as engine:
        objective = stage_loss(real_model(GROUPED, "llama"), Token(), torch.bfloat16)
        for block in objective.model.base_model.layers:
            fully_shard(block, mesh=engine.mesh, mp_policy=policy)
        fully_shard(objective, mesh=engine.mesh, mp_policy=policy)
        with Sent() as sent:
            for tokens in torch.randint(VOCABULARY, (2, 1, 17)):
                objective(tokens).minimised.backward()
    planned = traffic(TENSORS, Layout(8, 4, "bfloat16", reduces_each=True), micro_batches=2, muon=False)
    assert sent.bytes["allgather"] * 3 / 4 == planned.gathered_forward + planned.gathered_backward
    assert sent.bytes["reduce"] * 3 / 4 == planned.scattered
    assert sent.bytes["allreduce"] == planned.summed


@given(st.integers(2, 12), st.integers(1, 50))
def test_rings_bring_what_the_plan_says(gpus: int, chunk: int) -> None:
    """An all-gather step by step: in each, every GPU passes on the chunk that it got last."""
    held = [{gpu} for gpu in range(gpus)]
    last, received = list(range(gpus)), [0] * gpus
    while len(held[0]) < gpus:
        last = [last[gpu - 1] for gpu in range(gpus)]
        for gpu in range(gpus):
            held[gpu].add(last[gpu])
            received[gpu] += chunk
    assert all(len(each) == gpus for each in held)
    one = ModelTensors(block=((gpus * chunk,),), layers=1, outside=())
    planned = traffic(one, Layout(gpus, gpus, "float32"), micro_batches=1, muon=False)
    assert planned.gathered_forward == pytest.approx(4 * received[0])
    assert planned.scattered == planned.gathered_backward == planned.gathered_forward


def test_a_collective_takes_the_slower_of_links_and_network() -> None:
    size = 1e9
    inside = collective_seconds(size, 8, H100)
    assert inside == pytest.approx(7 / 8 * size / (0.8 * 450e9), rel=0.02)
    # Over two nodes eight rings share the network: 8 x 50 GB/s are less than the 450 of the links.
    outside = collective_seconds(size, 16, H100)
    assert outside == pytest.approx(15 / 16 * size / (0.8 * 8 * 50e9), rel=0.05)
    slow = H100.model_copy(update={"network_gb_per_second": 5.0})
    assert collective_seconds(size, 16, slow) > 8 * outside
    assert collective_seconds(size, 8, slow) == inside
    assert collective_seconds(0, 1024, H100) == pytest.approx(8.4e-6 + 896 * 3.4e-6 + 127 * 14e-6)
    assert collective_seconds(size, 1, H100) == sending_seconds(size, 1, H100) == 0
    # One GPU's own link is an eighth of what a node has.
    assert sending_seconds(size, 16, H100) == pytest.approx(8 * outside, rel=0.1)
    assert replica_seconds(size, Layout(8, 8), H100) == 0
    assert replica_seconds(size, Layout(16, 8), H100) == pytest.approx(size / 40e9, rel=0.01)


def test_what_is_waited_for_is_what_is_sent() -> None:
    """All operations of a step, one after the other, take what starting them takes, and bytes over bandwidth."""
    layout = Layout(8, 8, "bfloat16")
    tensors = model_tensors(LLAMA_8B, 128_256, "llama")
    waits, sent = waiting(tensors, layout, H100, muon=False), traffic(tensors, layout, 1, muon=False)
    total = waits.forward + waits.backward + waits.reducing + waits.bare + waits.bare_end
    operations = 33 + 32 + 33  # gathering forward and backward, where the outside stays, and scattering
    starting = operations * collective_seconds(0, 8, H100)
    assert total == pytest.approx(starting + sent.total / (0.8 * 450e9))


def test_the_loss_by_more_nodes_that_torchtitan_measured() -> None:
    """Llama 3.1 8B on H100, two sequences of 8,192 each: 6,667 tokens/s a GPU on 8 (compiled), 6,514 on 128, and 5,762
    and 5,605 without compilation (pytorch/torchtitan, benchmarks/llama3_h100_202412, tables 1 and 3)."""
    for few, many in ((6667, 6514), (5762, 5605)):
        rates = {}
        for gpus in (8, 128):
            work = Work(LLAMA_8B, 128_256, "llama", 8192, 2 * gpus, muon=False)
            efficiency = few * work.row_flops / 8192 / H100.peak
            rates[gpus] = 2 * 8192 / step_on(work, Layout(gpus, gpus, "bfloat16"), H100, 2, efficiency).seconds
        assert rates[128] / rates[8] == pytest.approx(many / few, abs=0.025)
        assert rates[8] == pytest.approx(few, rel=0.03)


def test_a_step_without_communication_runs_at_the_kernels_share() -> None:
    work = Work(LLAMA_8B, 128_256, "llama", 8192, 4, muon=False)
    step = step_on(work, Layout(1, 1), H100, 2, 0.4)
    assert step.utilisation == pytest.approx(0.4)
    assert (step.portion.micro_batches, step.waiting_seconds) == (2, 0)
    again = step_on(work, Layout(1, 1, checkpointing=True), H100, 2, 0.4)
    assert again.seconds == pytest.approx(4 / 3 * step.seconds)
    muon = step_on(Work(LLAMA_8B, 128_256, "llama", 8192, 4, muon=True), Layout(1, 1), H100, 2, 0.4)
    assert muon.seconds > step.seconds


def test_accumulation_saves_reductions_and_hybrid_sharding_saves_the_network() -> None:
    work = Work(LLAMA_8B, 128_256, "llama", 2048, 256, muon=False)
    summed, each = (
        step_on(work, Layout(64, 64, "bfloat16", reduces_each=reduces), H100, 1, 0.4) for reduces in (False, True)
    )
    assert each.traffic.scattered == 4 * summed.traffic.scattered
    assert each.seconds > summed.seconds
    assert each.memory["whole_gradients"] < summed.memory["whole_gradients"]
    # Gathering leaves the node no more; the one reduction of a step costs twice as much between the nodes.
    hybrid = step_on(work, Layout(64, 8, "bfloat16"), H100, 1, 0.4)
    assert hybrid.memory["weights"] == 8 * summed.memory["weights"]
    slow = H100.model_copy(update={"network_gb_per_second": 12.5})
    times = [step_on(work, Layout(64, group, "bfloat16"), slow, 1, 0.4).seconds for group in (8, 64)]
    assert times[0] < times[1]
