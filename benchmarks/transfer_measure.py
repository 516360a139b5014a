"""One seed of benchmarks/transfer.py: everything trained, then everything measured; each figure is kept."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transfer_arms import ARMS, SMALLEST, run_folder, train, tune
from transfer_family import CONTINUED, MEMBERS, base_folder
from transfer_scores import Logits, Target, best_alpha, cascade_logits, mean_acceptance, pretraining_texts
from transfer_task import read_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk import files
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.proxy import proxy_tuned
from kinfolk.transfer.sources import TransferView, load_member
from kinfolk.transfer.translation import translation

SAME_VOCABULARY = (*MEMBERS, CONTINUED)
TRANSLATED = ("residual", "two bases, to the end")
"""Arms that are tried on other vocabularies."""
MAPS = ("exact", "first-piece", "aligned", "edit-distance", "healed")
BEST_MAPS = ("exact", "healed")
"""Of the other arms than the first."""
ALIGNED_ON = 200
"""Training responses, evenly spread over both sets, that alignments and frequencies are made from."""


def run_seed(work: Path, seed: int, arms: list[str], targets: list[str], view: TransferView) -> None:
    """Train and measure what is missing, arm by arm; the same call goes on where it was stopped."""
    for name in targets:
        _once(run_folder(work, seed, f"tuned {name}"), lambda name=name: tune(work, seed, name, view))
    measured = Measured(work, seed, view)
    measured.alone_and_proxies(targets)
    for name in arms:
        _once(run_folder(work, seed, name), lambda name=name: train(work, seed, name, view))
        measured.arm(name, targets)


def _once(folder: Path, work: Callable[[], Any]) -> None:
    """A finished training's folder is not even read again."""
    ledger = folder / "ledger.jsonl"
    if not (ledger.exists() and '"finished"' in ledger.read_text().splitlines()[-1]):
        work()


class Measured:
    """Figures by method and base, in one JSON file."""

    def __init__(self, work: Path, seed: int, view: TransferView) -> None:
        self.work, self.seed, self.view = work, seed, view
        self.path = work / "results" / f"seed{seed}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.texts = pretraining_texts(work / "family" / "test.txt")
        self.targets: dict[str, Target] = {}
        self.read: dict[tuple[str, str, bool], Logits] = {}

    def alone_and_proxies(self, targets: list[str]) -> None:
        """Every base by itself, fully tuned, and proxy-tuned by the smallest member."""
        for name in targets:
            base = self.target(name)
            self.once("base", name, lambda name=name, base=base: self.alone(name, base.model, base.logits))
            self.once("tuned", name, lambda name=name: self.alone(name, self.tuned_model(name), self.tuned(name)))
            if name in SAME_VOCABULARY and name != SMALLEST:
                self.once("proxy-tuning", name, lambda name=name: self.proxy(name))

    def arm(self, arm: str, targets: list[str]) -> None:
        """The value network of an arm on every base that it can be used on."""
        for name in targets:
            if name in SAME_VOCABULARY:
                self.once(arm, name, lambda name=name: self.pair(arm, name))
            elif arm in TRANSLATED:
                for kind in MAPS if arm == TRANSLATED[0] else BEST_MAPS:
                    self.once(f"{arm}, {kind}", name, lambda name=name, kind=kind: self.translated(arm, name, kind))

    def once(self, method: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name in self.found.get(method, {}):
            return
        self.found.setdefault(method, {})[name] = (found := measure())
        files.write_json(self.path, self.found)
        shown = {key: round(found[key], 3) for key in ("alpha", "exact", "format", "bits per byte") if key in found}
        losses = {each: round(loss, 4) for each, loss in found["loss"].items()}
        self.view.say(f"seed {self.seed}  {name}  {method}: {shown} {losses}")

    def target(self, name: str) -> Target:
        if name not in self.targets:
            folder = base_folder(self.work, self.seed, name)
            self.targets[name] = Target(folder, self.work / "task", *load_member(folder))
        return self.targets[name]

    @cache  # noqa: B019 (one object for each process)
    def loaded(self, name: str, part: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = load_member(run_folder(self.work, self.seed, name) / part)
        return model.eval(), tokenizer

    def tuned_model(self, name: str) -> PreTrainedModel:
        return self.loaded(f"tuned {name}", "tuned")[0]

    @cache  # noqa: B019
    def tuned(self, name: str) -> Logits:
        return self.target(name).logits_of(self.tuned_model(name))

    @cache  # noqa: B019
    def changes(self, arm: str) -> Logits:
        """The logits of a residual value network, which depend on the text alone."""
        return self.target(SMALLEST).logits_of(self.loaded(arm, "value")[0])

    def alone(self, name: str, model: PreTrainedModel, logits: Logits) -> dict[str, Any]:
        """A base, or a fully tuned one; the smallest member in the same state is its draft."""
        target = self.target(name)
        found = {
            **target.figures(logits, self.tuned(name)),
            "format": target.format_score(model),
            "bits per byte": target.bits_per_byte(model, self.texts),
        }
        if name not in SAME_VOCABULARY:
            return found
        draft = self.target(SMALLEST).logits if model is target.model else self.tuned(SMALLEST)
        return found | {"acceptance": mean_acceptance(logits, draft)}

    def pair(self, arm: str, name: str) -> dict[str, Any]:
        target, value = self.target(name), self.loaded(arm, "value")[0]
        pair = Pair.of(target.model, value, scheme=ARMS[arm].scheme).eval()
        if ARMS[arm].scheme == "residual":
            change, base, draft = self.changes(arm), target.logits, self.target(SMALLEST).logits

            def combined(alpha: float) -> Logits:
                return _sum(base, change, alpha)

            def of_draft(alpha: float) -> Logits:
                return _sum(draft, change, alpha)

            return self.weighted(name, pair, combined, of_draft)
        change = cascade_logits(target, pair)
        difference = {key: change[key] - target.logits[key] for key in change}
        return self.weighted(name, pair, lambda alpha: _sum(target.logits, difference, alpha))

    def proxy(self, name: str) -> dict[str, Any]:
        target, small = self.target(name), self.target(SMALLEST)
        tuned = self.tuned(SMALLEST)
        difference = {key: tuned[key] - small.logits[key] for key in tuned}
        pair = proxy_tuned(target.model, self.tuned_model(SMALLEST), small.model)
        return self.weighted(
            name,
            pair,
            lambda alpha: _sum(target.logits, difference, alpha),
            lambda alpha: _sum(small.logits, difference, alpha),
        )

    def translated(self, arm: str, name: str, kind: str) -> dict[str, Any]:
        target = self.target(name)
        value, tokenizer = self.loaded(arm, "value")
        rows = {
            part: [row["response"] for row in read_rows(self.work / "task" / f"{part}.jsonl")]
            for part in ("train", "development")
        }
        between, coverage = translation(
            target.tokenizer,
            tokenizer,
            rows["development"],
            kind,
            rows["train"][:: len(rows["train"]) // ALIGNED_ON],
            force=True,
        )
        pair = Pair.of(target.model, value, translation=between).eval()
        change = self.translated_changes(arm, name, kind == "healed", pair)

        def combined(alpha: float) -> Logits:
            pair.alpha = alpha
            return {key: pair.combined(target.logits[key], change[key]) for key in change}

        return self.weighted(name, pair, combined) | {"coverage": coverage.to_dict()}

    def translated_changes(self, arm: str, name: str, is_healed: bool, pair: Pair) -> Logits:
        """All maps but `healed` read the same value logits."""
        key = (arm, name, is_healed)
        if key not in self.read:
            self.read[key] = self.target(name).changes(pair)
        return self.read[key]

    def weighted(
        self,
        name: str,
        pair: Pair,
        combined: Callable[[float], Logits],
        of_draft: Callable[[float], Logits] | None = None,
    ) -> dict[str, Any]:
        """Figures at the alpha that is best on development responses, and at 1."""
        target = self.target(name)
        with torch.no_grad():
            alpha = best_alpha(target, combined)
            logits = combined(alpha)
            found = {
                "alpha": alpha,
                **target.figures(logits, self.tuned(name)),
                "at alpha 1": target.figures(combined(1.0), self.tuned(name)),
            }
            if of_draft is not None:
                found["acceptance"] = mean_acceptance(logits, of_draft(alpha))
        pair.alpha = alpha
        found["format"] = target.format_score(pair)
        if pair.config.vocabulary is None:
            found["bits per byte"] = target.bits_per_byte(pair, self.texts)
        return found


def _sum(base: Logits, change: Logits, alpha: float) -> Logits:
    return {key: base[key] + alpha * change[key] for key in base}
