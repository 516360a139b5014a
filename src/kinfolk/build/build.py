"""The executor: walks any plan, stage by stage, and goes on where an earlier process stopped."""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

from kinfolk.build.alikeness import compare_members
from kinfolk.build.finish import finish_member
from kinfolk.build.forecast import check_forecast
from kinfolk.build.jobs import Job, Turn
from kinfolk.build.locks import enter_run, holds_only_locks
from kinfolk.build.origin import begin_stage, stage_config
from kinfolk.build.outlook import Outlook, begin_outlook
from kinfolk.build.provenance import command_line, machine, versions
from kinfolk.build.remaining import share_of
from kinfolk.build.run import BuildView, Run, begin_run, open_run
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily
from kinfolk.growth.claims import refuse_plan
from kinfolk.growth.dynamics import stage_rates
from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.document import objective_document, source_document, stage_flops
from kinfolk.plan.stages import Grow, Stage
from kinfolk.plan.strategies import Strategy, plan_family
from kinfolk.schedule.live import NotYet
from kinfolk.train import checkpoint
from kinfolk.train.compiling import compiling_for, refuse_without_compiler
from kinfolk.train.divergence import DivergedError
from kinfolk.train.engine import Engine, MainStopped, Precision, resolve_precision, start_engine
from kinfolk.train.interruption import Interrupted, Interruption, stopping_together
from kinfolk.train.memory import memory_for, weights_fix
from kinfolk.train.model import config_for, empty_model, parameters_of
from kinfolk.train.monitor import final_loss, read_metrics
from kinfolk.train.stage import (
    NEWEST_KEPT,
    Method,
    Trained,
    kept_checkpoints,
    loss_name,
    rows_of_rank,
    smallest_rows,
    train_stage,
)
from kinfolk.train.tensor_parallel import refuse_tensor_parallel


def build(
    loaded: LoadedFamily,
    folder: Path,
    view: BuildView,
    strategy: Strategy | None = None,
    law: ChosenLaw | None = None,
    engine: Engine | None = None,
    only: Sequence[str] = (),
) -> None:
    """Build every member of the family in the run directory `folder`, or what is still missing of it.

    `strategy` makes the plan; by default the one that the family names. With a `law`, or one from an earlier call,
    every finished stage is held against its forecast, and the rest is forecast anew. `engine` is one that has been
    started already, in which a process can join the others only once. With `only`, these members alone are built, and
    other jobs may build others in the same folder at the same time.

    Under torchrun every process calls this. Raises KinfolkError for what the user can mend, and Interrupted after
    saving when a stop was asked for; the same call goes on from there. The processes other than the main one raise
    MainStopped where the main one alone has something to say.
    """
    if loaded.auto_schedule:
        raise KinfolkError(
            "the schedule is still to be chosen", where=loaded.origin, fix="call kinfolk.build.auto.build_family"
        )
    began = time.monotonic()
    strategy = strategy or partial(plan_family, origin=loaded.origin)
    with nullcontext(engine) if engine else start_engine() as engine, ExitStack() as held:
        interruption = held.enter_context(Interruption(second_stops=engine.world_size == 1).watched())
        if not engine.is_main:
            # They note a signal, tell the main process of it with the next step, and follow that.
            held.enter_context(interruption.deferred())
        preparing = held.enter_context(ExitStack())
        engine.on_main(lambda: _claim(loaded, folder, engine, view, held, preparing, strategy, law, only))
        run = open_run(loaded, folder, strategy)
        job = held.enter_context(Job(run, only, view))
        engine.on_main(job.look_through)
        if engine.from_main(lambda: job.is_idle):
            if engine.is_main:
                what = "run of the probe" if run.plan.is_trial else "member"
                which = f"every {what} is finished" if not only else f"finished: {', '.join(only)}"
                view.say(f"{run.family.name}  {which}; there is nothing to do")
            return
        engine.on_main(lambda: job.begin(command=command_line(), versions=versions(), machine=machine(engine)))
        preparing.close()
        if engine.is_main:
            view.planned(run.family.name, job.documents)
        while (turn := engine.from_main(job.next_turn)) is not None:
            _take_turn(run, turn, engine, view, interruption)

        def check(stage: Stage) -> None:
            engine.use_threads(stage_config(stage, run.family, run.store))
            with stopping_together(interruption, engine) as heed:
                check_forecast(run, stage, engine, view, heed)

        def compare() -> None:
            with stopping_together(interruption, engine) as heed:
                compare_members(run, engine, heed)

        job.end(engine, check, compare, time.monotonic() - began)


def _take_turn(run: Run, turn: Turn, engine: Engine, view: BuildView, interruption: Interruption) -> None:
    stage = run.plan.stage(turn.stage)
    engine.use_threads(stage_config(stage, run.family, run.store))
    if turn.trains:
        _train(run, stage, engine, view, interruption)
    with stopping_together(interruption, engine) as heed:
        if turn.finishes:
            finish_member(run, stage, engine, view, heed)
        check_forecast(run, stage, engine, view, heed)


def _claim(
    loaded: LoadedFamily,
    folder: Path,
    engine: Engine,
    view: BuildView,
    held: ExitStack,
    preparing: ExitStack,
    strategy: Strategy,
    law: ChosenLaw | None,
    only: Sequence[str],
) -> None:
    """Take the run directory until `held` closes, and prepare it; a refusal leaves no trace of it.

    It is taken for this build, or as one of several jobs, of which the next one begins when `preparing` closes.
    """
    refuse_unbuildable(loaded, strategy, engine, only)
    existed = folder.exists() and not holds_only_locks(folder)
    alone = enter_run(folder, bool(only), held, preparing, view.say)
    try:
        begin_run(loaded, folder, view, strategy, law, alone)
    except BaseException:
        if not existed and not (folder / "data").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_unbuildable(loaded: LoadedFamily, strategy: Strategy, engine: Engine, only: Sequence[str] = ()) -> None:
    """KinfolkError for a family that can be planned and not be built, before anything is written."""
    family = loaded.family
    missing = [member.name for member in family.members if member.shape is None]
    if missing:
        raise KinfolkError(
            f"{missing[0]} has no shape, only a number of parameters: it can be planned, not built",
            where=f"{loaded.origin}: members",
            fix="give every member a shape",
        )
    plan = strategy(family)
    refuse_plan(plan, family.model.architecture)
    share_of(plan, only)
    for stage in plan.stages:
        rows_of_rank(smallest_rows(stage, family.model.context_length), engine.data_rank, engine.data_parallel)
        assert stage.shape is not None
        config = config_for(stage.shape, family.model, family.embedding_rows)
        refuse_tensor_parallel(config, engine.layout.tensor_parallel, f"stage {stage.name}")
    if engine.layout.compile:
        refuse_without_compiler(engine.device)


def _train(run: Run, stage: Stage, engine: Engine, view: BuildView, interruption: Interruption) -> None:
    assert stage.shape is not None
    precision = resolve_precision(run.family.recipe.precision, engine.device)
    if not engine.from_main(lambda: _goes_on(run, stage, view)):
        _start_stage(run, stage, precision, engine, view, interruption)
    if stage.steps == 0:
        engine.on_main(lambda: _record_stage(run, stage, Trained(0.0, 0.0, 0.0)))
        return
    with memory_for("the weights", stage.name, weights_fix(engine)):
        model = empty_model(stage_config(stage, run.family, run.store))
    family, folder = run.family, run.stages / stage.name
    rates = stage_rates(run.plan, stage.name, family.model.architecture, parameters_of(model))
    method = Method(family.recipe, family.model.context_length, precision, rates, family.factors(stage.shape))
    documents = {each["name"]: each for each in run.document["stages"]}
    is_forecast = engine.is_main and not run.plan.is_trial
    outlook = begin_outlook(run.folder, documents, stage.name, view.say) if is_forecast else None
    if engine.layout.compile and engine.is_main:
        view.say(f"{stage.name}  its blocks are compiled with the first step, which takes longer")
    try:
        with compiling_for(stage.name):
            trained = train_stage(
                stage,
                model,
                run.store_of(stage),
                method,
                folder,
                engine,
                view,
                interruption,
                outlook if isinstance(outlook, Outlook) else None,
            )
    except Interrupted:
        if engine.is_main:
            saved = checkpoint.checkpoints(run.checkpoints(stage.name))[-1]
            run.ledger.append("interrupted", stage=stage.name, step=checkpoint.position_of(saved).step)
        raise
    except DivergedError as diverged:
        fault, step = diverged.fault, diverged.step
        engine.on_main(lambda: run.ledger.append("stage_diverged", stage=stage.name, step=step, fault=fault))
        if not run.plan.is_trial:
            raise diverged if engine.is_main else MainStopped from None
        if engine.is_main:
            why = fault.rstrip(",")
            view.say(f"{stage.name}  diverged at step {step} of {stage.steps} ({why}); what would follow is left out")
        return
    engine.on_main(lambda: _record_stage(run, stage, trained, outlook))


def _goes_on(run: Run, stage: Stage, view: BuildView) -> bool:
    """Whether the stage has a checkpoint to train from; what need not be kept is removed."""
    saves = run.checkpoints(stage.name)
    saved = checkpoint.latest(saves)
    is_trained = saved is not None and checkpoint.step_of(saved) == stage.steps
    kept = kept_checkpoints(stage, run.family.recipe, is_trained)
    checkpoint.tidy(saves, kept, 1 if is_trained else NEWEST_KEPT)
    if saved is not None:
        step = checkpoint.position_of(saved).step
        run.ledger.append("stage_resumed", stage=stage.name, step=step)
        view.say(f"{stage.name}  goes on from step {step} of {stage.steps}")
    return saved is not None


def _start_stage(
    run: Run, stage: Stage, precision: Precision, engine: Engine, view: BuildView, interruption: Interruption
) -> None:
    """Give the stage a checkpoint to train from; every process takes part."""

    def progress(what: str, done: int, total: int) -> None:
        interruption.heed()
        if engine.is_main and what == "growing":
            view.prepared(f"{'growing' if isinstance(stage.source, Grow) else 'beginning'} {stage.name}", done, total)

    begun = begin_stage(stage, run.plan, run.family, run.store, run.stages, engine, progress)

    def record() -> None:
        if begun.grown:
            run.ledger.append("grown", stage=stage.name, **begun.grown)
            view.say(f"{stage.name}  grown from {stage.parent}: {begun.grown['description']}")
        run.ledger.append(
            "stage_started",
            stage=stage.name,
            precision=precision,
            source=source_document(stage.source),
            objective=objective_document(stage.objective),
            data=list(stage.data),
        )

    begun.saving.finish(record)


def _record_stage(run: Run, stage: Stage, trained: Trained, outlook: Outlook | NotYet | None = None) -> None:
    name = loss_name(stage)
    records = read_metrics(run.stages / stage.name / "metrics.jsonl")
    forecast = any("forecast_loss" in record for record in records)
    run.ledger.append(
        "stage_finished",
        stage=stage.name,
        steps=stage.steps,
        tokens=stage.tokens,
        positions=stage.positions,
        epochs=trained.epochs,
        seconds=trained.seconds,
        checkpoint_seconds=trained.checkpoint_seconds,
        spikes=sum("spike" in record for record in records),
        rollbacks=sum("rolled_back_to" in record for record in records),
        flops=stage_flops(run.family, stage),
        not_forecast=None if forecast or outlook is None else outlook.why,
        **{f"final_{name}": final_loss(records, name) if stage.steps else None},
    )
