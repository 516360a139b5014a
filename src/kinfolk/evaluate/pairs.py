"""Every two of several checkpoints, held against each other on the same text.

Never more than two models are in memory. What was found out about a pair is kept (`kinfolk.evaluate.cache`), so that a
family with one more member costs the new pairs only.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.evaluate import cache
from kinfolk.evaluate.acceptance import decode_with_draft, prompts_of, tokens_per_pass
from kinfolk.evaluate.by_document import compare_by_document
from kinfolk.evaluate.consistency import position_divergences, share, statistics
from kinfolk.evaluate.head import Predictor
from kinfolk.evaluate.load import quiet
from kinfolk.evaluate.loss import DocumentLosses
from kinfolk.evaluate.measure import Loaded, Progress, common_context, load, quietly
from kinfolk.evaluate.text import Text
from kinfolk.evaluate.windows import Document

_NEW_TOKENS = 64
"""Length of the continuations that measure acceptance; less where the context is short."""

_SEED = 0


@dataclass(frozen=True)
class PairSettings:
    """How pairs are compared."""

    context_length: int
    stride: int
    draft_tokens: int = 4
    """Tokens drafted at a time, in what is expected and in what is measured."""
    decode: int = 0
    """Prompts to continue with one model as the other's draft; 0 measures nothing."""
    force: bool = False


def settings_for(
    paths: list[str], context_length: int | None, stride: int | None, draft_tokens: int, decode: int, force: bool
) -> PairSettings:
    """Windows that all models can read: the shortest of their contexts, and half of it, unless given."""
    if len(paths) < 2:
        raise KinfolkError(
            f"{len(paths)} model to compare", fix="give two models or more, or a run with several members"
        )
    if context_length is None:
        context_length = common_context(paths)
    return PairSettings(
        context_length, max(1, context_length // 2) if stride is None else stride, draft_tokens, decode, force
    )


def compare_pairs(
    paths: list[str], text: Text, settings: PairSettings, progress: Progress = quietly
) -> tuple[list[dict[str, Any]], int]:
    """A record of plain data for every two of the checkpoints, and how many of them were known from before.

    A pair of one tokenizer is compared token by token (`kind` per_token), any other by bits per byte of each document
    (`kind` by_document), which a pair of one tokenizer has too.
    """
    shelf = _Shelf(text, settings, progress)
    digests = {path: cache.checkpoint_digest(path) for path in paths}
    kept = {"text": text.digest(), **vars(settings)}
    records, known = [], 0
    for first, second in combinations(paths, 2):
        found, was_known = cache.remembered(
            "pair", [digests[first], digests[second]], kept, partial(_compare, shelf, first, second)
        )
        records.append({"first": first, "second": second, **found})
        known += was_known
    return records, known


def matrices(paths: list[str], pairs: list[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """Mean figures of all pairs as square lists in the order of `paths`; None where tokenizers differ.

    `kl` has KL(row || column); the others are symmetric. A model is at 0 from itself and accepts all of itself.
    """
    place = {path: at for at, path in enumerate(paths)}

    def empty(own: float) -> list[list[float | None]]:
        return [[own if row == column else None for column in paths] for row in paths]

    found = {"kl": empty(0.0), "jensen_shannon": empty(0.0), "top1_agreement": empty(1.0), "acceptance": empty(1.0)}
    for pair in pairs:
        if pair["kind"] != "per_token":
            continue
        row, column = place[pair["first"]], place[pair["second"]]
        found["kl"][row][column] = pair["kl_first_to_second"]["mean"]
        found["kl"][column][row] = pair["kl_second_to_first"]["mean"]
        for name in ("jensen_shannon", "top1_agreement", "acceptance"):
            found[name][row][column] = found[name][column][row] = pair[name]["mean"]
    return found


class _Shelf:
    """The two models that were used last, and the losses of all."""

    def __init__(self, text: Text, settings: PairSettings, progress: Progress) -> None:
        self.text = text
        self.settings = settings
        self.progress = progress
        self._loaded: dict[str, Loaded] = {}
        self._losses: dict[str, DocumentLosses] = {}

    def model(self, path: str, beside: str) -> Loaded:
        """A checkpoint, loaded; all others but `beside` go."""
        self._loaded = {kept: model for kept, model in self._loaded.items() if kept in (path, beside)}
        if path not in self._loaded:
            self._loaded[path] = load(path, self.settings.force)
        return self._loaded[path]

    def losses(self, loaded: Loaded) -> DocumentLosses:
        """The loss of every token of the text."""
        if loaded.path not in self._losses:
            self._losses[loaded.path] = loaded.losses(
                self.text, self.settings.context_length, self.settings.stride, self.progress
            )
        return self._losses[loaded.path]


@dataclass(frozen=True)
class _Pair:
    first: Loaded
    second: Loaded
    shelf: _Shelf

    @cached_property
    def documents(self) -> list[Document]:
        return self.first.documents(self.shelf.text)

    @property
    def name(self) -> str:
        return f"{self.first.path} and {self.second.path}"


def _compare(shelf: _Shelf, first: str, second: str) -> dict[str, Any]:
    with quiet():
        pair = _Pair(shelf.model(first, second), shelf.model(second, first), shelf)
        by_document = compare_by_document(shelf.losses(pair.first), shelf.losses(pair.second))
        if pair.first.tokenizer.get_vocab() != pair.second.tokenizer.get_vocab():
            return {"kind": "by_document", "by_document": by_document}
        return {"kind": "per_token", **_per_token(pair), "by_document": by_document}


def _per_token(pair: _Pair) -> dict[str, Any]:
    settings = pair.shelf.settings
    total = sum(len(ids) for ids, _ in pair.documents)
    found = position_divergences(
        pair.first.model,
        pair.second.model,
        pair.documents,
        pair.first.separator,
        settings.context_length,
        pair.first.device,
        settings.stride,
        progress=lambda done: pair.shelf.progress(f"comparing {pair.name}", done, total),
    )
    acceptance = found.field("acceptance")
    return {
        "tokens": found.tokens,
        "documents": len(found.values),
        "kl_first_to_second": statistics(found.field("forward")),
        "kl_second_to_first": statistics(found.field("backward")),
        "jensen_shannon": statistics(found.field("jensen_shannon")),
        "top1_agreement": share(found.field("agreement")),
        "acceptance": statistics(acceptance),
        "tokens_per_pass": tokens_per_pass(acceptance, settings.draft_tokens),
        "measured": _measured(pair) if settings.decode else None,
    }


def _measured(pair: _Pair) -> dict[str, Any] | None:
    """Acceptance in decoding, sampled and greedy, with the smaller model as the draft; None for different rows."""
    draft, target = pair.first, pair.second
    if draft.model.num_parameters() > target.model.num_parameters():
        draft, target = target, draft
    if Predictor(draft.model, None).vocab_size != Predictor(target.model, None).vocab_size:
        return None
    settings = pair.shelf.settings
    # One place is left for the token that a pass of the target adds to the drafted ones.
    room = min(each.longest for each in (draft, target)) - settings.draft_tokens - 1
    new_tokens = min(_NEW_TOKENS, room // 2)
    if new_tokens < 2:
        raise KinfolkError(f"a context of {room} tokens leaves no room to decode in", fix="leave --decode out")
    prompts = prompts_of(pair.documents, pair.first.separator, min(_NEW_TOKENS, room - new_tokens), settings.decode)
    found = {
        name: decode_with_draft(
            draft.model,
            target.model,
            prompts,
            new_tokens=new_tokens,
            draft_tokens=settings.draft_tokens,
            sample=name == "sampled",
            seed=_SEED,
            device=pair.first.device,
            progress=lambda done, of, name=name: pair.shelf.progress(f"decoding ({name}) {pair.name}", done, of),  # type: ignore[misc]
        ).to_dict()
        for name in ("sampled", "greedy")
    }
    return {"draft": draft.path, "target": target.path, "prompts": len(prompts), "new_tokens": new_tokens, **found}
