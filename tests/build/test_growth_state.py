"""A training state that several processes grow, each a share of it: what one grows, bit for bit, in little memory."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import LARGE, RecordingView, family, in_child, in_ranks, leftovers
from torch import Tensor

from kinfolk.build.build import build
from kinfolk.build.growth_state import Growth, begin_growth
from kinfolk.build.ledger import Ledger
from kinfolk.build.origin import begin_stage, load_stage_model, stage_config, verification_text
from kinfolk.build.run import Run, open_run
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.files import write_json
from kinfolk.growth import rows, safetensors_writer
from kinfolk.growth.axes import Axes
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.memory import peak_memory_bytes
from kinfolk.growth.names import axes_of
from kinfolk.growth.verify import verify
from kinfolk.growth.width import WidthGrowth
from kinfolk.plan.stages import Dynamics, Grow, Operator, Stage
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import alone, start_engine
from kinfolk.train.interruption import Interruption
from kinfolk.train.model import config_for, empty_model, load_parameters, new_model
from kinfolk.train.objective import stage_loss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.saving import save
from kinfolk.train.state_files import saved_tensors

WAYS = {
    "carried": (Operator(width="energy_split", noise=1.0), Dynamics("carry")),
    "asymmetric": (Operator(width="zero_pad", noise=0.0, block="drawn"), Dynamics("asymmetric")),
    "stacked": (Operator(width="fpi", depth="stack", noise=0.5), Dynamics("asymmetric")),
    "reset": (Operator(width="energy_split"), Dynamics("reset")),
}


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(family(finished.parent), finished)


@pytest.fixture(scope="module")
def resharded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of stages with the smaller member's last state, by AdamW and by Muon, each saved by two processes."""
    folders = {}
    for matrices in ("adamw", "muon"):
        folders[matrices] = tmp_path_factory.mktemp(matrices)
        assert in_ranks(lambda matrices=matrices: save_in_parts(run, matrices, folders[matrices])) == [0, 0]
    return folders


def save_in_parts(run: Run, matrices: Any, folder: Path) -> None:
    """The state of a stage, which one process has saved, saved again by all of this job. Muon's has new numbers."""
    stage = run.plan.stages[0]
    saved = newest(run.stages, stage)
    with start_engine() as engine:
        model = empty_model(stage_config(stage, run.family, run.store))
        engine.distribute(stage_loss(model, stage.objective, torch.float32))
        optimizer = make_optimizer(model, Optimizer(matrices=matrices))
        tensors = checkpoint.tensors_of(model, optimizer)
        kept = tensors if matrices == "adamw" else checkpoint.tensors_of(model, None)
        checkpoint.load(saved, kept, engine)
        for number, name in enumerate(sorted(tensors.keys() - kept.keys())):
            tensors[name].fill_(0.25 + number)
        save(folder / stage.name / "checkpoints", tensors, checkpoint.position_of(saved), engine)


def newest(stages: Path, stage: Stage) -> Path:
    found = checkpoint.latest(stages / stage.name / "checkpoints")
    assert found is not None
    return found


def contents(saved: Path) -> dict[str, Tensor]:
    return {name: tensor.whole() for name, tensor in saved_tensors(saved).items()}


def loaded(saved: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As training reads it, by DCP."""
    tensors = {name: torch.empty_like(value) for name, value in like.items() if name != "random.cpu"}
    checkpoint.load(saved, tensors, alone())
    return tensors


def expected(before: Mapping[str, Tensor], shapes: tuple[Shape, Shape], way: str) -> dict[str, Tensor]:
    """The child's state by formulas for whole tensors."""
    operator, dynamics = WAYS[way]
    weights = part(before, "model.")
    grown = grow_weights(weights, "llama", *shapes, operator)
    state = {f"model.{name}": value for name, value in grown.items()} | {"random.cpu": before["random.cpu"]}
    if dynamics.optimizer == "reset":
        return state
    width = WidthGrowth(*shapes, operator, "llama")
    unties = shapes[0].tie_word_embeddings and not shapes[1].tie_word_embeddings
    for name in grown:
        is_new = "layers.1." in name
        source = name.replace("layers.1.", "layers.0.").replace(
            "lm_head", "model.embed_tokens" if unties else "lm_head"
        )
        axes, _ = axes_of(name, "llama")
        is_untied = unties and source == "model.embed_tokens.weight"
        starts_anew = is_untied or (is_new and (operator.depth == "zero_exit" or dynamics.optimizer == "asymmetric"))
        count = before[f"optimizer.step.{source}"]
        state[f"optimizer.step.{name}"] = torch.zeros_like(count) if starts_anew else count
        for power, key in enumerate(("exp_avg", "exp_avg_sq"), 1):
            if f"optimizer.{key}.{source}" in before:
                moment = whole_moment(before[f"optimizer.{key}.{source}"], width, axes, power)
                if starts_anew:
                    moment.zero_()
                elif dynamics.optimizer == "asymmetric":
                    for dim, growth in enumerate(map(width.axes.axis, axes)):
                        if growth is not None:
                            moment.index_fill_(dim, growth.new.nonzero().flatten(), 0.0)
                state[f"optimizer.{key}.{name}"] = moment
    return state


def whole_moment(moment: Tensor, width: WidthGrowth, axes: Axes, power: int) -> Tensor:
    grown = moment.clone()
    for dim, growth in enumerate(map(width.axes.axis, axes)):
        if growth is not None:
            factor = (growth.gradient**power).to(moment.dtype)
            grown = grown.index_select(dim, growth.index) * factor.view(
                [-1 if at == dim else 1 for at in range(grown.dim())]
            )
    return grown


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def child_of(run: Run, way: str, untied: bool = False) -> Stage:
    stage = run.plan.stages[1]
    assert isinstance(stage.source, Grow) and stage.shape is not None
    operator, dynamics = WAYS[way]
    shape = Shape(**LARGE, tie_word_embeddings=not untied)
    return replace(stage, shape=shape, source=replace(stage.source, operator=operator, dynamics=dynamics))


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_many_processes_grow_what_whole_tensors_grow_into(
    run: Run, resharded: dict[str, Path], matrices: str, tmp_path: Path
) -> None:
    """By every policy, from the files of one process and of two, tied and untied, in one, two and four processes."""
    parent = run.plan.stages[0]
    sources = {"one": run.stages / parent.name, "two": resharded[matrices] / parent.name}
    before = contents(newest(resharded[matrices], parent))
    if matrices == "adamw":
        whole = contents(newest(run.stages, parent))
        del whole["random.cpu"]  # of each process its own
        assert all(torch.equal(before[name], value) for name, value in whole.items())
        before |= {"random.cpu": contents(newest(run.stages, parent))["random.cpu"]}
    jobs = [(1, "one", False), (2, "two", True), (4, "two", False)] if matrices == "adamw" else [(2, "two", False)]
    stages = {}
    for count, source, untied in jobs:
        for way in WAYS:
            stages[count, way] = tmp_path / f"{count}-{way}"
            stages[count, way].mkdir()
            (stages[count, way] / parent.name).symlink_to(sources[source])

        def work(count: int = count, untied: bool = untied) -> None:
            rows.ELEMENTS_PER_BLOCK = 100  # several blocks of each matrix
            with start_engine() as engine:
                for way in WAYS:
                    stage = child_of(run, way, untied)
                    there = stages[count, way]
                    begin_stage(stage, run.plan, run.family, run.store, there, engine).saving.finish()

        log = tmp_path / f"log-{count}"
        assert in_ranks(work, log, count) == [0] * count, log.read_text()
        for way in WAYS:
            stage = child_of(run, way, untied)
            saved = newest(stages[count, way], stage)
            found, wanted = contents(saved), expected(before, (parent.shape, stage.shape), way)  # type: ignore[arg-type]
            assert found.keys() == wanted.keys()
            assert checkpoint.has_optimizer(saved) == (way != "reset")
            for name, value in wanted.items():
                if name == "random.cpu" and source == "two":
                    continue
                assert found[name].dtype == value.dtype and torch.equal(found[name], value), (count, way, name)
            read = loaded(saved, wanted)
            assert all(torch.equal(read[name], found[name]) for name in read)
            assert len(list(saved.glob("*.safetensors"))) == count
            assert leftovers(stages[count, way]) == []


def write_verification(run: Run, child: Stage, stages: Path) -> None:
    """Grow, and write down what it showed."""
    with start_engine() as engine:
        begun = begin_stage(child, run.plan, run.family, run.store, stages, engine)
        assert begun.grown is not None
        begun.saving.discard()
        if engine.is_main:
            write_json(stages / "verification.json", begun.grown["verification"])


def test_what_is_measured_from_files_is_what_live_models_show(run: Run, tmp_path: Path) -> None:
    """Also where two processes have measured half of the text each."""
    parent = run.plan.stages[0]
    text = verification_text(run.store, run.family)
    before = load_stage_model(parent, run.family, run.store, run.stages)
    for way, claims in (("carried", True), ("stacked", False)):
        child, stages = child_of(run, way), tmp_path / way
        assert isinstance(child.source, Grow) and parent.shape and child.shape
        after = empty_model(stage_config(child, run.family, run.store))
        weights = {name: parameter.detach() for name, parameter in before.named_parameters()}
        load_parameters(after, grow_weights(weights, "llama", parent.shape, child.shape, child.source.operator))
        live = verify(before, after, text, claims)
        stages.mkdir()
        (stages / parent.name).symlink_to(run.stages / parent.name)
        log = tmp_path / f"log-{way}"
        assert in_ranks(partial(write_verification, run, child, stages), log) == [0, 0], log.read_text()
        found = json.loads((stages / "verification.json").read_text())
        assert found["passed"] == live.passed == (True if claims else None)
        for precision, limit in (("float32", 1e-5), ("float64", 1e-9)):
            for name, value in asdict(getattr(live, precision)).items():
                measured = found[precision][name]
                assert measured == value or measured == pytest.approx(value, rel=limit, abs=limit), (way, name)


@pytest.mark.parametrize("how", ["full", "broken", "stopped"])
def test_where_one_process_cannot_all_stop_and_nothing_is_left(run: Run, tmp_path: Path, how: str) -> None:
    """The main process alone says why."""
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("large", "members"))
    stage = run.plan.stages[1]

    def work() -> None:
        rank, real = os.environ["RANK"], safetensors_writer.FileWriter.write
        interruption = Interruption(second_stops=False)

        def write(writer: Any, name: str, first_row: int, block: Tensor) -> None:
            if rank == "1" and how == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            if rank == "1" and how == "stopped":
                os.kill(os.getpid(), signal.SIGTERM)
            real(writer, name, first_row, block * (1.01 if how == "broken" and "mlp.down" in name else 1))

        safetensors_writer.FileWriter.write = write  # type: ignore[method-assign]
        with start_engine() as engine, interruption.watched(), interruption.deferred():
            begin_stage(
                stage,
                run.plan,
                run.family,
                run.store,
                tmp_path / "run" / "stages",
                engine,
                lambda *_: interruption.heed(),
            )

    log = tmp_path / "log"
    assert in_ranks(work, log) == [{"full": 1, "broken": 2, "stopped": 143}[how], 3], log.read_text()
    said = log.read_text()
    if how == "stopped":
        assert "error:" not in said and "Traceback" not in said, said
    else:
        assert said.count({"full": "No space left", "broken": "claims to preserve the function and does not"}[how]) == 1
    assert leftovers(tmp_path / "run") == []
    assert checkpoint.latest(tmp_path / "run" / "stages" / stage.name / "checkpoints") is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_while_growing(finished: Path, tmp_path: Path, rank: int) -> None:
    """What it leaves is removed by the next start, which grows anew; the ledger knows of one growth."""
    spec, log, folder = family(finished.parent), tmp_path / "log", tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("large", "ledger.jsonl", "report.html"))
    lines = (finished / "ledger.jsonl").read_text().splitlines(keepends=True)
    until = next(number for number, line in enumerate(lines) if '"grown"' in line)
    (folder / "ledger.jsonl").write_text("".join(lines[:until]))

    def work() -> None:
        real = safetensors_writer.FileWriter.close

        def close(writer: Any) -> None:
            if os.environ["RANK"] == str(rank):
                os.kill(os.getpid(), signal.SIGKILL)
            real(writer)

        safetensors_writer.FileWriter.close = close  # type: ignore[method-assign]
        build(spec, folder, RecordingView())

    codes = in_ranks(work, log)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] not in (0, None)
    # The main process, where it is not the one that was killed, removes what is there.
    assert [path.name for path in leftovers(folder)] == ["step-00000000.unfinished"] * (rank == 0)
    ledger = Ledger(folder / "ledger.jsonl")
    assert ledger.events("grown") == []
    assert in_child(lambda: build(spec, folder, RecordingView()), log) == 0, log.read_text()
    assert leftovers(folder) == [] and len(ledger.events("grown")) == 1
    for name in ("small", "large"):
        weights = [(each / "members" / name / "model.safetensors").read_bytes() for each in (finished, folder)]
        assert weights[0] == weights[1]


# Memory


def shape_of(layers: int, hidden: int) -> Shape:
    sizes = {"num_attention_heads": hidden // 16, "num_key_value_heads": hidden // 16, "head_dim": 16}
    return Shape(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=4 * hidden, **sizes)


def growth_between(run: Run, *shapes: Shape) -> Growth:
    configs = [config_for(shape, run.family.model, run.family.embedding_rows) for shape in shapes]
    return Growth("llama", (shapes[0], shapes[1]), (configs[0], configs[1]), Operator(), Dynamics())


def begun(folder: Path, growth: Growth) -> Path:
    """A state of the parent's shape, with moments."""
    model = new_model(growth.configs[0], 0)
    tensors = checkpoint.tensors_of(model, make_optimizer(model, Optimizer()))
    return save(folder, tensors, Position(0, 0), alone())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be begun anew here")
@pytest.mark.parametrize("count", [1, 2])
def test_no_process_holds_a_state(run: Run, tmp_path: Path, count: int) -> None:
    """A state of 38 MB grows into one of 114 MB, of which two processes write 57 each."""
    text = verification_text(run.store, run.family)
    growths = [
        growth_between(run, shape_of(1, 32), shape_of(2, 48)),
        growth_between(run, shape_of(3, 256), shape_of(4, 384)),
    ]
    parents = [begun(tmp_path / f"parent-{number}", growth) for number, growth in enumerate(growths)]

    def work() -> None:
        with start_engine() as engine:
            for number, (parent, growth) in enumerate(zip(parents, growths, strict=True)):
                # The first for all that is loaded once.
                Path("/proc/self/clear_refs").write_text("5")
                before = peak_memory_bytes()
                saving, verification = begin_growth(
                    parent, tmp_path / f"child-{number}", Position(0, 0), growth, text, engine, lambda *_: None
                )
                added = peak_memory_bytes() - before
                assert verification.passed
                size = sum(path.stat().st_size for path in saving.finish().glob("*.safetensors"))
            print(f"{added / 1e6:.1f} MB added")
            assert size > 110e6 and added < 36e6, (added, size)

    log = tmp_path / "log"
    assert in_ranks(work, log, count) == [0] * count, log.read_text()
