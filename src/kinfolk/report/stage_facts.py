"""What is known of one stage, as a list of facts."""

from collections.abc import Iterator

from kinfolk.report import numbers
from kinfolk.report.metrics import finite
from kinfolk.report.numbers import Number
from kinfolk.report.run import StageRun
from kinfolk.report.tree import edge

Fact = tuple[str, Number | str]

SHAPE = {
    "num_hidden_layers": "{} layers",
    "hidden_size": "hidden size {}",
    "num_attention_heads": "{} query heads",
    "num_key_value_heads": "{} KV heads",
    "head_dim": "heads of {}",
    "intermediate_size": "feed-forward {}",
}


def stage_facts(stage: StageRun) -> list[Fact]:
    """The facts, from what it starts with to what it ended at."""
    return [*_origin(stage), *_work(stage), *_outcome(stage)]


def _origin(stage: StageRun) -> Iterator[Fact]:
    plan = stage.plan
    yield "Starts", edge(stage)
    if stage.growth and stage.growth.description:
        yield "Growth", stage.growth.description.replace("->", "→")
    dynamics = plan.source.dynamics or {}
    if dynamics:
        yield "After the growth", f"optimizer state: {dynamics.get('optimizer')}; rates: {dynamics.get('rates')}"
    shape = plan.shape or {}
    if shape:
        yield "Shape", ", ".join(words.format(shape[key]) for key, words in SHAPE.items() if key in shape)
        yield "Embeddings", "tied to the head" if shape.get("tie_word_embeddings") else "apart from the head"
    yield "Parameters", numbers.count(plan.parameters.total)
    yield "without embeddings", numbers.count(plan.parameters.non_embedding)


def _work(stage: StageRun) -> Iterator[Fact]:
    plan, rate = stage.plan, stage.plan.rate
    yield "Objective", f"patches of {plan.patch_size} tokens" if plan.patch_size > 1 else "next token"
    yield "Tokens", numbers.count(stage.finished.tokens if stage.finished else plan.tokens)
    done = f"{stage.steps_done:,} of {plan.steps:,}" if stage.state == "unfinished" else f"{plan.steps:,}"
    yield "Steps", done
    decay = f"{rate.decay_shape} decay over {rate.decay_steps:,}" if rate.decay_steps else "no decay"
    yield "Learning rate", f"peak {numbers.small(rate.peak)}, warm-up over {rate.warmup_steps:,} steps, {decay}"
    yield "FLOPs, 6ND", numbers.flops(stage.flops.six_nd)
    yield "FLOPs, matmul", numbers.flops(stage.flops.matmul)
    if stage.finished:
        yield "Time", numbers.seconds(stage.finished.seconds)
        if stage.finished.seconds:
            yield (
                "Speed",
                Number(
                    f"{stage.finished.tokens / stage.finished.seconds:,.0f} tokens a second",
                    numbers.exact(stage.finished.tokens / stage.finished.seconds),
                ),
            )


def _outcome(stage: StageRun) -> Iterator[Fact]:
    yield "State", stage.state + (f", diverged at step {stage.diverged.step:,}" if stage.diverged else "")
    if stage.finished and stage.finished.final_loss is not None:
        yield "Training loss at its end", numbers.fixed(stage.finished.final_loss, 4)
    quick = finite(stage.metrics.held_out)
    if quick:
        yield f"Quick held-out loss, step {quick[-1][0]:,}", numbers.fixed(quick[-1][1], 4)
    if stage.member:
        yield "Member", f"{stage.member.member}, in {stage.member.path}"
        yield "Held-out loss", numbers.fixed(stage.member.held_out.loss, 4)
        yield "Bits per byte", numbers.fixed(stage.member.held_out.bits_per_byte, 4)
