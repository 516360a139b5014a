"""A finished member: a stock Hugging Face checkpoint with tokenizer and model card."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import kinfolk
from kinfolk import files
from kinfolk.family.data import BuiltinSource, HuggingFaceSource
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Grow, Plan, Stage


def export_member(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    records: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Write the member atomically; returns the SHA-256 of its weights. Equal models give equal bytes.

    `records` are JSON files that go with it, by name.
    """
    with files.new_directory(target) as folder, _without_progress_bars():
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, "utf-8")
        for name, record in records.items():
            files.write_json(folder / name, record)
    return weights_digest(target)


def weights_digest(member: Path) -> str:
    """SHA-256 of a member's weights, those of several files joined, as the ledger has it."""
    return "+".join(files.sha256(path) for path in sorted(member.glob("*.safetensors")))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers draws one for writing a model; the build shows its own progress."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def versions_of(plan: Plan, stage: Stage) -> list[str]:
    """Names of the versions of the data that a stage's lineage has read, in that order."""
    return list(dict.fromkeys(name for part in plan.lineage(stage.name) for name in part.data))


def model_card(
    stage: Stage,
    plan: Plan,
    family: Family,
    document: dict[str, Any],
    data: dict[str, Any],
    held_out: dict[str, Any],
    newest: dict[str, Any] | None = None,
) -> str:
    """The member's README.md: what it is, where it comes from, what it cost, how good it is, how to load it.

    `data` counts what it was trained on, and `newest` is its score on the held-out part of a later version of the data.

    Holds no times and no paths of the machine, so that the same family gives the same bytes.
    """
    by_name = {entry["name"]: entry for entry in document["stages"]}
    entry = by_name[stage.name]
    lineage = [by_name[ancestor.name] for ancestor in plan.lineage(stage.name)]
    six_nd = sum(ancestor["flops"]["six_nd"] for ancestor in lineage)
    matmul = sum(ancestor["flops"]["matmul"] for ancestor in lineage)
    shape, read = entry["shape"], versions_of(plan, stage)
    perplexity = "beyond floating point" if held_out["perplexity"] is None else f"{held_out['perplexity']:.3f}"
    rows = "\n".join(_lineage_row(plan.stage(ancestor["name"]), ancestor) for ancestor in lineage)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- kinfolk
- {family.model.architecture}
---
# {stage.member}

A member of the family **{family.name}**, built with [kinfolk](https://pypi.org/project/kinfolk/) {kinfolk.__version__}
by the strategy *{plan.strategy}*. A base language model, not tuned for instructions.

| | |
|---|---|
| architecture | {family.model.architecture}, {shape["num_hidden_layers"]} layers, hidden size {shape["hidden_size"]}, \
{shape["num_attention_heads"]} query and {shape["num_key_value_heads"]} KV heads of size {shape["head_dim"]}, \
feed-forward {shape["intermediate_size"]}, {"tied" if shape["tie_word_embeddings"] else "untied"} embeddings |
| parameters | {entry["parameters"]["total"]:,} ({entry["parameters"]["non_embedding"]:,} without embeddings) |
| vocabulary, context | {document["vocab_size"]:,} entries, {document["context_length"]:,} tokens |

## Results
On the family's held-out documents ({held_out["documents"]:,} documents, {held_out["bytes"]:,} bytes; windows of \
{held_out["context_length"]} tokens with a stride of {held_out["stride"]}):

| loss (nats per token) | perplexity | bits per byte |
|---|---|---|
| {held_out["loss"]:.4f} | {perplexity} | {held_out["bits_per_byte"]:.4f} |
{_newest_sentence(newest)}
## Lineage
The FLOPs are those of training, counted as 6ND and as the matrix products of the real model. Together:
{six_nd:.4g} (6ND), {matmul:.4g} (matmul).

| stage | from | tokens | peak learning rate | 6ND FLOPs | matmul FLOPs |
|---|---|---|---|---|---|
{rows}

## Training data
{_data_sentence(family, read)} {data["train_documents"]:,} documents, {data["train_bytes"]:,} bytes, \
{data["train_tokens"]:,} tokens; held out by document.

## How to load
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def _lineage_row(stage: Stage, entry: dict[str, Any]) -> str:
    origin = "random weights"
    if stage.parent:
        origin = f"{'grown from' if isinstance(stage.source, Grow) else 'continues'} {stage.parent}"
    return (
        f"| {stage.name} | {origin} | {stage.tokens:,} | {stage.rate.peak:.4g} "
        f"| {entry['flops']['six_nd']:.4g} | {entry['flops']['matmul']:.4g} |"
    )


def _newest_sentence(newest: dict[str, Any] | None) -> str:
    if newest is None:
        return ""
    documents = f"{newest['documents']:,} documents, {newest['bytes']:,} bytes"
    scores = f"{newest['loss']:.4f} nats per token, {newest['bits_per_byte']:.4f} bits per byte"
    return f"\nOn those of version {newest['version']} of the data ({documents}): {scores}.\n"


def _data_sentence(family: Family, versions: list[str]) -> str:
    names: list[str] = []
    for source in [source for version in versions for source in family.data.sources_of(version)]:
        if isinstance(source, BuiltinSource):
            names.append(source.builtin)
        elif isinstance(source, HuggingFaceSource):
            names.append(source.huggingface)
        else:
            names.append(Path(source.path).name)
    return f"Sources: {', '.join(names)}."
