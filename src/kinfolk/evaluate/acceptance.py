"""Speculative decoding: how much of what a small member drafts a larger one accepts, expected and measured.

Expected acceptance needs no decoding: it is sum min(p, q) at each position (Leviathan et al., arXiv 2211.17192).
Measured acceptance decodes with transformers' assisted generation and counts. The two are compared at the positions
that were tested, on the text that came out: there each test is a coin whose probability is the expected acceptance.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.divergence import Divergences, Head, divergences
from kinfolk.evaluate.head import check_context, predictor
from kinfolk.evaluate.loss import evaluation_mode
from kinfolk.evaluate.windows import Document
from kinfolk.transfer.acceptance import Drafts, counted_drafts


def tokens_per_pass(acceptance: Sequence[NDArray[np.float64]], draft_tokens: int) -> dict[str, float | None]:
    """Tokens that one pass of the target yields when `draft_tokens` are drafted each time.

    `acceptance` holds that of each position, document by document. `independent` takes the mean acceptance a for every
    position, (1 - a^(k + 1)) / (1 - a). `in_place` keeps the correlation of neighbouring positions: the mean over
    positions t of sum_{j <= k} prod_{i < j} a_(t + i), over positions with k positions behind them; None without any.

    >>> tokens_per_pass([np.array([0.5, 0.5, 0.5])], 2)
    {'draft_tokens': 2, 'independent': 1.75, 'in_place': 1.75}
    """
    mean = float(np.concatenate(list(acceptance)).mean())
    independent = float(sum(mean**power for power in range(draft_tokens + 1)))
    places = [len(values) - draft_tokens + 1 for values in acceptance]
    total, count = 0.0, sum(max(0, number) for number in places)
    for values, number in zip(acceptance, places, strict=True):
        if number > 0:
            runs = np.lib.stride_tricks.sliding_window_view(values, draft_tokens)
            total += number + float(np.cumprod(runs, axis=1).sum())
    return {
        "draft_tokens": draft_tokens,
        "independent": independent,
        "in_place": total / count if count else None,
    }


@dataclass(frozen=True)
class Acceptance:
    """What came of decoding some prompts with a draft model."""

    tested: int
    """Drafted tokens that were accepted or refused; those behind a refusal count as neither."""
    measured: float
    """Share of them that was accepted."""
    expected: float
    """Mean over the same positions of sum min(p, q), or for greedy decoding of whether both rank the same first."""
    standard_error: float
    """That of `measured` about `expected`, if acceptance is as expected; 0 for greedy decoding."""
    tokens_per_pass: float
    """New tokens in each pass of the target."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))


def decode_with_draft(
    draft: PreTrainedModel,
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    draft_tokens: int,
    sample: bool,
    seed: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Acceptance:
    """Continue prompts (token ids) by `new_tokens` each with `target`, while `draft` drafts `draft_tokens` at a time.

    Sampling is at temperature 1 from the whole distributions; greedy otherwise. Nothing ends a continuation early. A
    function of the models, prompts and `seed`; the state of torch's generators is left as it was. Raises KinfolkError
    for models of different vocabularies, and for a context that is too short.
    """
    device = torch.device(device)
    decoded: list[tuple[Tensor, Drafts]] = []
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with evaluation_mode(draft, target), fork, _plain_generation(draft, target, draft_tokens):
        pair = predictor(draft), predictor(target)
        if pair[0].vocab_size != pair[1].vocab_size:
            raise KinfolkError(
                f"the draft has {pair[0].vocab_size} rows and the target {pair[1].vocab_size}",
                fix="measure acceptance between models of one vocabulary; the expected one needs none of this",
            )
        for place, prompt in enumerate(prompts):
            for model in (draft, target):
                check_context(model, len(prompt) + new_tokens)
            torch.manual_seed(seed + place)
            start = torch.tensor([list(prompt)], device=device)
            with counted_drafts(target) as drafts:
                text = _generate(draft, target, start, new_tokens, sample)
            decoded.append((text, drafts))
            if progress is not None:
                progress(place + 1, len(prompts))
        with torch.inference_mode():
            expected = torch.cat([_expected(pair, text, drafts.judged, sample) for text, drafts in decoded])
    tested, passes = len(expected), sum(len(drafts.accepted) for _, drafts in decoded)
    if not tested:
        raise KinfolkError("no drafted token was tested", fix="decode more than one new token for each prompt")
    return Acceptance(
        tested=tested,
        measured=sum(sum(drafts.accepted) for _, drafts in decoded) / tested,
        expected=float(expected.mean()),
        standard_error=float((expected * (1 - expected)).sum().sqrt() / tested),
        tokens_per_pass=sum(text.shape[1] - drafts.lengths[0] for text, drafts in decoded) / passes,
    )


def prompts_of(documents: list[Document], separator: int | None, length: int, count: int) -> list[list[int]]:
    """`count` pieces of text, evenly spread over the documents: the separator and the tokens behind, `length` in all.

    Fewer where there are fewer whole pieces. KinfolkError where there is none.
    """
    prefix = [] if separator is None else [separator]
    step = length - len(prefix)
    pieces = [(ids, start) for ids, _ in documents for start in range(0, len(ids) - step + 1, step)]
    if not pieces:
        raise KinfolkError(
            f"no document has {step} tokens for a prompt", fix="give longer texts, or leave --decode out"
        )
    chosen = np.linspace(0, len(pieces) - 1, min(count, len(pieces))).round().astype(int)
    return [[*prefix, *map(int, pieces[at][0][pieces[at][1] : pieces[at][1] + step])] for at in chosen]


def _generate(draft: PreTrainedModel, target: PreTrainedModel, prompt: Tensor, new_tokens: int, sample: bool) -> Tensor:
    """The whole text (1, tokens)."""
    untyped: Any = target
    text: Tensor = untyped.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        assistant_model=draft,
        do_sample=sample,
        max_new_tokens=new_tokens,
    )
    return text


def _expected(pair: Any, text: Tensor, places: list[int], sample: bool) -> Tensor:
    """Expected acceptance (places,) of a token drafted for each of these places of a text."""
    before = torch.tensor(places, dtype=torch.long, device=text.device) - 1
    heads = [Head(source.states(text)[0][before], source.weight) for source in pair]
    found: Divergences = divergences(heads[0], heads[1], heads[0].entries)
    return found.acceptance if sample else found.agreement


@contextmanager
def _plain_generation(draft: PreTrainedModel, target: PreTrainedModel, draft_tokens: int) -> Iterator[None]:
    """Have both models generate without what their checkpoints say of generation, and drafts be of one length."""
    make: Any = GenerationConfig
    before = [model.generation_config for model in (draft, target)]
    draft.generation_config = make(
        num_assistant_tokens=draft_tokens, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    # The whole distribution: top-k is 50 unless said otherwise.
    target.generation_config = make(temperature=1.0, top_k=0, top_p=1.0)
    try:
        yield
    finally:
        draft.generation_config, target.generation_config = before
