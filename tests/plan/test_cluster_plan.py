"""Plans of families on clusters: descriptions, choices, documents, checkpoints, growth, and the command."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family, validate_family
from kinfolk.family.recipe import Checkpoints
from kinfolk.growth.memory import peak_memory_bytes
from kinfolk.growth.product import grow_checkpoint
from kinfolk.plan.cluster.choice import Setting, as_engine, sequences_to_set, too_many
from kinfolk.plan.cluster.description import Cluster, load_cluster, preset_clusters
from kinfolk.plan.cluster.document import SWEEP, cluster_document
from kinfolk.plan.cluster.question import Question
from kinfolk.plan.cluster.step import Work
from kinfolk.plan.cluster.storage import GROWING_PROCESS, GROWING_THREADS, State, growing, saving
from kinfolk.plan.machines import GPU_MEMORY, GPU_PEAK_FLOPS
from kinfolk.plan.stages import Operator
from kinfolk.plan.strategies import plan_family

H200 = load_cluster("h200")


def document(family: str = "paper-1b-8b", cluster: Cluster = H200, **recipe: Any) -> dict[str, Any]:
    loaded = load_family(family, [f"recipe.{name}={value}" for name, value in recipe.items()]).family
    losses = {member.name: 2.5 for member in loaded.members}
    return cluster_document(Question(loaded, plan_family(loaded), family, cluster, 0.4, losses))


# Descriptions


def test_presets_agree_with_the_table_of_gpus() -> None:
    for name in preset_clusters():
        cluster = load_cluster(name)
        assert cluster.peak == GPU_PEAK_FLOPS[cluster.gpu] and cluster.memory == GPU_MEMORY[cluster.gpu]
    assert set(preset_clusters()) == {"a100", "h100", "h200", "b200"}
    assert load_cluster("H100x64").gpus == 64
    assert (H200.nodes(8), H200.nodes(9), H200.storage(8), H200.storage(512)) == (1, 2, 4e9, 20e9)


def test_a_file_describes_a_cluster(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("like: h100\ngpus: 24\nnetwork_gb_per_second: 12.5\nprice: 2\n")
    cluster = load_cluster(str(own))
    assert (cluster.gpu, cluster.gpus, cluster.network_gb_per_second, cluster.price) == ("H100", 24, 12.5, 2)
    own.write_text(yaml.safe_dump(H200.model_dump(exclude_none=True)))
    assert load_cluster(str(own)) == H200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("like: h1000\n", "did you mean h100?"),
        ("like: h100\ngpu_per_node: 4\n", "did you mean gpus_per_node?"),
        ("like: h100\ngpus: 0\n", "use at least 1"),
        ("like: h100\nmemory_gb: .nan\n", "memory_gb"),
        ("gpu: mine\n", "is missing"),
        ("- h100\n", "begin with `like: h200`"),
        ("like: [\n", "not YAML"),
    ],
)
def test_faults_of_a_file_are_told(tmp_path: Path, text: str, words: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(KinfolkError) as caught:
        load_cluster(str(own))
    assert words in str(caught.value) and "own.yaml" in str(caught.value)


# Choices


def test_too_many_gpus_for_the_batch() -> None:
    shape = load_family("paper-1b-8b").family.members[0].shape
    assert shape is not None
    work = Work(shape, 32_000, "llama", 2048, 512, muon=False)
    assert too_many([work], [512], 512) is None
    assert "fewer than GPUs" in str(too_many([work], [512], 1024))
    assert "do not divide" in str(too_many([work], [512], 24))
    assert "fewer than GPUs" in str(too_many([work], [128], 256))  # a batch-size warm-up begins with less


def test_the_engine_takes_one_micro_batch_for_all_stages() -> None:
    """By itself 32,768 tokens; where they do not fit, what does in every stage."""
    members = load_family("paper-1b-8b").family.members
    works = [Work(m.shape, 32_000, "llama", 2048, 512, muon=False) for m in members if m.shape]
    setting = Setting(None, 2048)
    assert setting.rows == 16
    large = H200.model_copy(update={"memory_gb": 1000.0})
    assert {step.rows_at_once for step in as_engine(works, 8, large, setting, 0.4)} == {16}
    chosen = as_engine(works, 8, H200, setting, 0.4)
    assert all(step.fits for step in chosen)
    assert len({step.layout for step in chosen}) == len({step.rows_at_once for step in chosen}) == 1
    assert sequences_to_set(chosen, works, setting) == chosen[0].rows_at_once < 16
    small = H200.model_copy(update={"memory_gb": 10.0})
    assert not all(step.fits for step in as_engine(works, 8, small, setting, 0.4))
    assert {step.rows_at_once for step in as_engine(works, 8, large, Setting(4, 2048), 0.4)} == {4}


# Documents


def test_every_number_of_gpus_and_the_one_to_take() -> None:
    found = document()
    assert [count["gpus"] for count in found["counts"]] == list(SWEEP) == [8, 16, 32, 64, 128, 256, 512, 1024]
    running = [count for count in found["counts"] if count["engine"]["runs"]]
    assert [count["gpus"] for count in running] == [8, 16, 32, 64, 128, 256, 512]
    assert found["counts"][-1]["engine"]["reason"] == "batch" and found["batch"]["most_gpus"] == 512
    fewest = min(count["engine"]["gpu_hours"] for count in running)
    (taken,) = [count for count in running if count["gpus"] == found["recommended"]["gpus"]]
    assert taken["engine"]["gpu_hours"] <= 1.1 * fewest
    assert all(count["engine"]["gpu_hours"] > 1.1 * fewest for count in running if count["gpus"] > taken["gpus"])
    for count in running:
        assert count["best"]["seconds"] <= count["engine"]["seconds"] * 1.001
        stages, members = count["engine"]["stages"], count["engine"]["members"]
        assert sum(stage["total_seconds"] for stage in stages) == pytest.approx(count["engine"]["seconds"])
        assert members[-1]["finished_after"] == pytest.approx(count["engine"]["seconds"])
        for stage in stages:
            assert stage["memory"]["total"] <= 141e9
            assert stage["seconds"] == pytest.approx(stage["steps"] * stage["step_seconds"])
            assert 0 < stage["utilisation"] <= 0.4 + 1e-9
    utilisations = [count["engine"]["utilisation"] for count in running]
    assert utilisations[-1] == min(utilisations)
    json.dumps(found, allow_nan=False)


def test_the_engine_is_asked_for_what_fits() -> None:
    """70 B on 1,024 H100 with recomputation; on fewer, summed gradients would be whole on every GPU and not fit."""
    found = document("ladder-8b-70b", load_cluster("h100"))
    assert found["recommended"] == found["recommended"] | {"gpus": 1024, "way": "engine"}
    running = [count["gpus"] for count in found["counts"] if count["engine"]["runs"]]
    assert running == [128, 256, 512, 1024]
    assert found["counts"][-2]["engine"]["options"] == ["--recompute", "--reduce-each"]
    last = found["counts"][-1]["engine"]
    assert last["options"] == ["--recompute"] and last["sequences_per_micro_batch"] is None
    assert not any("GB of weights" in warning for warning in found["warnings"])
    # Only what begins from random weights is ever whole in a node; what it grows into is not.
    small = load_cluster("h100").model_copy(update={"node_memory_gb": 24})
    warnings = [warning for warning in document("ladder-8b-70b", small)["warnings"] if "GB of weights" in warning]
    assert len(warnings) == 1 and warnings[0].startswith("8b begins with 32 GB")
    seventy = last["stages"][-1]
    assert seventy["layout"]["checkpointing"] and seventy["layout"]["precision"] == "mixed"
    assert seventy["checkpoint"]["bytes"] == pytest.approx(12 * 70.6e9, rel=1e-3)
    assert seventy["growth"]["written"] == seventy["checkpoint"]["bytes"]


def test_what_the_engine_cannot_do_is_planned_and_said() -> None:
    found = document("ladder-8b-70b", load_cluster("h100x64"))
    assert found["recommended"]["way"] == "best"
    (count,) = found["counts"]
    assert "70b takes" in count["engine"]["refused"] and "for activations" in count["engine"]["refused"]
    assert count["best"]["lacks"] == ["a residual stream in bfloat16"]
    assert any("as the engine is, no number of GPUs" in warning for warning in found["warnings"])


def test_a_family_that_fits_nowhere_is_told_the_nearest_setting_that_does() -> None:
    with pytest.raises(KinfolkError, match=r"70b takes .* GB of a GPU with 80, .* of it for optimizer") as caught:
        document("ladder-8b-70b", load_cluster("h100x8"))
    assert "use 64 GPUs: sharded over 64" in str(caught.value.fix) and "the engine lacks" in str(caught.value.fix)
    with pytest.raises(KinfolkError, match="the largest member takes") as caught:
        document("ladder-8b-70b", load_cluster("h100").model_copy(update={"memory_gb": 20.0}))
    assert "use GPUs of" in str(caught.value.fix)
    needed = int(str(caught.value.fix).split()[3])
    enough = load_cluster("h100").model_copy(update={"memory_gb": float(needed)})
    assert any(count["best"]["runs"] for count in document("ladder-8b-70b", enough)["counts"])


def test_too_many_gpus_are_told_how_many_would_do() -> None:
    with pytest.raises(KinfolkError, match="1024 GPUs are too many for the batch") as caught:
        document(cluster=load_cluster("h200x1024"))
    assert "use 512 GPUs, or a recipe.tokens_per_step of 2097152" in str(caught.value.fix)
    assert document(cluster=load_cluster("h200x1024"), tokens_per_step=2_097_152)["counts"][0]["engine"]["runs"]


def test_patches_make_rows_longer_and_steps_shorter() -> None:
    """A step of as many tokens has a K-th of the rows, and so feeds a K-th of the GPUs."""
    patch = ["patch={size: 4, share: 0.5, optimizer: reset}", "recipe.schedule.decay_share=0.2"]
    family = load_family("paper-1b-8b", patch).family
    found = cluster_document(Question(family, plan_family(family), "mine", H200, 0.4, {}))
    assert found["batch"]["most_gpus"] == 128
    patched = found["counts"][0]["engine"]["stages"][0]
    tokens = next(stage for stage in found["counts"][0]["engine"]["stages"] if stage["rows_per_step"] == 512)
    assert patched["rows_per_step"] == 128
    assert patched["tokens_per_second"] > 3 * tokens["tokens_per_second"]


def test_families_that_cannot_be_planned_on_a_cluster() -> None:
    bare = validate_family({"name": "bare", "members": [{"name": "a", "parameters": 1e9}]}, "bare.yaml")
    with pytest.raises(KinfolkError, match="memory depends on its shape"):
        cluster_document(Question(bare, plan_family(bare), "bare.yaml", H200, 0.4, {}))
    with pytest.raises(KinfolkError, match="trains in float32"):
        document(precision="float32")


# Checkpoints and growth


def test_checkpoints_are_written_beside_training() -> None:
    """Every process copies its shards, and writes and hashes them while training goes on."""
    state = State(4 * 10**9, 8 * 10**9)
    saved = saving(state, 1000, 1e6, Checkpoints(), H200, 8)
    assert (saved.copying_seconds, saved.writing_seconds, saved.hashing_seconds) == (0.075, 3.0, 3.0)
    assert saved.checkpoints == 1 + 1_000_000 // 30
    assert saved.total == pytest.approx(saved.checkpoints * 0.075 + 6)
    assert saved.total <= 0.02 * 1e6 + 6
    large = State(4 * 10**13, 8 * 10**13)  # by then the next is due before the last is written
    assert saving(large, 1000, 1e6, Checkpoints(), H200, 64).checkpoints == 1 + int(1e6 / 12_000)
    assert saving(state, 1000, 1e6, Checkpoints(seconds=1e5), H200, 8).checkpoints == 11
    assert saving(state, 1000, 1e6, Checkpoints(steps=300), H200, 8).checkpoints == 4


def test_a_growth_reads_the_parent_and_writes_the_child() -> None:
    parent, child = State(4, 8), State(16, 32)
    carried, fresh = (growing(parent, child, H200, carries, gpus=8) for carries in (True, False))
    assert (carried.read, carried.written) == (24, 48)  # the parent's twice, once for its hash
    assert fresh.read == 16
    state = State(4 * 10**9, 8 * 10**9)
    few, many = (growing(state, state, H200, carries=True, gpus=gpus) for gpus in (8, 64))
    assert 0 < many.seconds < few.seconds and many.process_bytes == few.process_bytes < 1e9
    # Read and hashed by eight processes, at 1.5 GB/s each or what the storage gives, and 3 ns for a number.
    bandwidth = H200.storage(8)
    wanted = 24e9 / min(8 * 1.5e9, bandwidth) + 24e9 / bandwidth + 3e-9 * 3e9 / 8
    assert few.seconds == pytest.approx(wanted)


def test_streamed_growth_needs_no_more_memory_than_the_plan_says(tmp_path: Path) -> None:
    """What growing adds to the process stays below the plan's blocks, whatever the tensors."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("the peak of this process cannot be begun anew here")
    for name, units in (("small", 16), ("large", 8192)):
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=512,
            intermediate_size=units,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        clear.write_text("5")
        before = peak_memory_bytes()
        wanted = {"intermediate_size": 2 * units}
        grown = grow_checkpoint(tmp_path / name, tmp_path / f"{name}-grown", wanted, Operator(), verify=False)
    added = grown.peak_memory_bytes - before
    planned = growing(State(0, 0), State(0, 0), H200, carries=False, gpus=1).process_bytes - GROWING_PROCESS
    here = planned * min(len(os.sched_getaffinity(0)), GROWING_THREADS) / GROWING_THREADS
    if grown.target_bytes < 3 * here:
        pytest.skip("with so many cores a whole checkpoint of this size would go unnoticed")
    assert added < here


# The command


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command_shows_a_table_and_json() -> None:
    shown = called("paper-1b-8b", "--cluster", "h200", "--price", "2")
    assert shown.exit_code == 0, shown.exception
    for word in (
        "recommended:",
        "too many",
        "sharded over 64",
        "whole gradients",
        "by: kinfolk build",
        "growth before 8b",
        "money",
        "batch:",
    ):
        assert word in shown.stdout
    result = called("paper-1b-8b", "--cluster", "h200x64", "--price", "2", "--utilisation", "0.5", "--json")
    found = json.loads(result.stdout)
    assert [count["gpus"] for count in found["counts"]] == [64]
    assert found["assumptions"]["kernel_efficiency"] == 0.5
    plan = found["counts"][0]["engine"]
    assert plan["money"] == pytest.approx(2 * plan["gpu_hours"])
    critical = [member["critical_tokens_per_step"] for member in found["batch"]["members"]]
    assert critical == sorted(critical) and critical[0] > 1e6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paper-1b-8b", "--cluster", "h20"), "did you mean h200?"),
        (("--cluster", "h200"), "there is no family to plan"),
        (("paper-1b-8b", "--cluster", "h200x0"), "gpus"),
        (("paper-1b-8b", "--cluster", "h200", "--gpus", "8"), "plays no part here"),
        (("paper-1b-8b", "--cluster", "h200", "--compare"), "plays no part here"),
        (("paper-1b-8b", "--cluster", "h200", "--budget", "1e21"), "plays no part here"),
        (("paper-1b-8b", "--cluster", "h200", "--utilisation", "2"), "is not a share"),
        (("paper-1b-8b", "--cluster", "h200", "--price", "-1"), "--price"),
        (("paper-1b-8b", "--cluster", "../nowhere.yaml"), "no preset and no file"),
    ],
)
def test_refusals_of_the_command(arguments: tuple[str, ...], words: str) -> None:
    result = called(*arguments)
    assert isinstance(result.exception, KinfolkError), result.exception
    assert words in str(result.exception) and result.stdout == ""
