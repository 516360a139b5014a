"""Models of one shape made into one: a stock checkpoint, with a record of what it was made from.

The siblings are loaded one at a time. Regression means are computed for as many layers at once as fit in memory, so
that large models are read several times and never need more than one model and a few gigabytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import kinfolk
from kinfolk import files
from kinfolk.card.card import Card, Facts, Part, Table, load_code, render
from kinfolk.card.metadata import common_facts
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.cache import checkpoint_digest
from kinfolk.evaluate.load import load_config, quiet
from kinfolk.evaluate.measure import Loaded, load
from kinfolk.evaluate.text import Text
from kinfolk.merge.grams import grams_of, linear_layers, weight_of
from kinfolk.merge.regmean import RegressionSums, shrunk

RECORD = "merge.json"
"""File of a merged checkpoint that says what it was made from."""

Method = Literal["regmean", "mean"]
Progress = Callable[[str, int, int], None]

_BYTES_AT_ONCE = 4 * 2**30
"""Of the float64 sums of layers that are solved together; one layer may take more."""


def merge_checkpoints(
    paths: list[str],
    texts: list[Text],
    output: Path,
    *,
    method: Method = "regmean",
    off_diagonal: float = 0.9,
    tokens: int = 100_000,
    bytes_at_once: int = _BYTES_AT_ONCE,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Any]:
    """Merge checkpoints of one shape and tokenizer into the folder `output`; returns what its merge.json says.

    `regmean` takes the regression mean of linear layers, from what each model's layers read of its text (`texts`: one
    for all, or one for each model), and the mean of all other tensors; `mean` takes the mean of all. Raises
    KinfolkError for models that do not fit together, and for an output that holds something else.
    """
    _check(paths, texts, output, method, off_diagonal, tokens)
    merged, means = load(paths[0]), _means(paths, progress)
    _copy_into(merged.model, means)
    layers = linear_layers(merged.model) if method == "regmean" else {}
    solved: list[str] = []
    each_text = texts * len(paths) if len(texts) == 1 else texts
    for group in _groups(layers, bytes_at_once):
        for name, weight in _solve(paths, each_text, group, off_diagonal, tokens, progress).items():
            weight_of(layers[name]).copy_(weight)
            solved.append(name)
    record = {
        "kind": "merge",
        "method": method,
        "off_diagonal": off_diagonal if method == "regmean" else None,
        "tokens": tokens if method == "regmean" else None,
        "texts_sha256": [text.digest() for text in texts],
        "sources": [{"name": Path(path).name, "sha256": checkpoint_digest(path)} for path in paths],
        "regression_means": solved,
        "versions": {"kinfolk": kinfolk.__version__, "torch": torch.__version__},
    }
    _write(merged, record, output, common_facts([Path(path) for path in paths]))
    return record


def _check(paths: list[str], texts: list[Text], output: Path, method: Method, off_diagonal: float, tokens: int) -> None:
    if len(paths) < 2:
        raise KinfolkError(f"{len(paths)} model to merge", fix="give two models of one shape, or more")
    if not 0 <= off_diagonal <= 1:
        raise KinfolkError(f"off-diagonal entries are multiplied by {off_diagonal}", fix="use 0 to 1")
    if tokens < 1:
        raise KinfolkError(f"Gram matrices of {tokens} tokens", fix="use 1 or more")
    if method == "regmean" and len(texts) not in (1, len(paths)):
        raise KinfolkError(
            f"{len(texts)} texts for {len(paths)} models",
            fix="give --text once for all, or once for each model in their order; or --method mean, which needs none",
        )
    if output.exists() and not (output / RECORD).is_file():
        raise KinfolkError("there is something else here", where=str(output), fix="choose another --output")
    shapes = [_shapes(path) for path in paths]
    for path, found in zip(paths[1:], shapes[1:], strict=True):
        odd = next((name for name in {**shapes[0], **found} if shapes[0].get(name) != found.get(name)), None)
        if odd is not None:
            raise KinfolkError(
                f"{odd} is {_size(found, odd)}, and {_size(shapes[0], odd)} in {paths[0]}",
                where=path,
                fix="merge models of one shape",
            )


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's parameters, from its config alone."""
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"), quiet():
        model = make(load_config(path))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _size(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return " x ".join(map(str, shapes[name])) if name in shapes else "absent"


def _means(paths: list[str], progress: Progress) -> dict[str, Tensor]:
    """The mean in float64 of every parameter. KinfolkError for models of different tokenizers."""
    sums: dict[str, Tensor] = {}
    vocabulary: dict[str, int] = {}
    for place, path in enumerate(paths):
        loaded = load(path)
        vocabulary = vocabulary or loaded.tokenizer.get_vocab()
        if loaded.tokenizer.get_vocab() != vocabulary:
            raise KinfolkError(
                f"another tokenizer than that of {paths[0]}", where=path, fix="merge models of one family"
            )
        for name, parameter in loaded.model.named_parameters():
            value = parameter.detach().cpu().double() / len(paths)
            sums[name] = sums[name] + value if name in sums else value
        progress("averaging", place + 1, len(paths))
    return sums


@torch.no_grad()
def _copy_into(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def _groups(layers: dict[str, nn.Module], bytes_at_once: int) -> list[list[str]]:
    """Names of layers whose sums fit in memory together, in the order of the model."""
    groups: list[list[str]] = []
    room = 0
    for name, layer in layers.items():
        inputs, outputs = weight_of(layer).shape
        needed = 8 * inputs * (2 * inputs + 2 * outputs)
        if not groups or needed > room:
            groups.append([])
            room = bytes_at_once
        groups[-1].append(name)
        room -= needed
    return groups


def _solve(
    paths: list[str], texts: list[Text], group: list[str], off_diagonal: float, tokens: int, progress: Progress
) -> dict[str, Tensor]:
    """The regression means (in, out) of a group of layers; layers that read nothing are left out."""
    sums: dict[str, RegressionSums] = {}
    for path, text in zip(paths, texts, strict=True):
        loaded = load(path)
        layers = {name: layer for name, layer in linear_layers(loaded.model).items() if name in group}
        what = f"reading with {Path(path).name}, {len(group)} layers"
        grams = grams_of(
            loaded.model,
            layers,
            text.documents(loaded.tokenizer),
            loaded.separator,
            loaded.longest,
            loaded.device,
            tokens,
            lambda done, what=what: progress(what, done, tokens),  # type: ignore[misc]
        )
        for name, gram in grams.items():
            weight = weight_of(layers[name])
            if name not in sums:
                sums[name] = RegressionSums.zero(weight.shape[0], weight.shape[1], gram.device)
            sums[name].add(shrunk(gram, off_diagonal), weight)
    return {name: found.solve() for name, found in sums.items() if found.models == len(paths)}


def _write(merged: Loaded, record: dict[str, Any], output: Path, facts: Facts) -> None:
    dtype = getattr(load_config(merged.path), "dtype", None)
    with files.new_directory(output) as folder, quiet():
        model: Any = merged.model
        model = model.cpu().to(dtype or torch.float32)
        model.save_pretrained(folder, safe_serialization=True)
        merged.tokenizer.save_pretrained(folder)
        files.write_json(folder / RECORD, record)
        card = _card(record, str(merged.model.config.model_type), facts)
        (folder / "README.md").write_text(render(card), "utf-8")


def _card(record: dict[str, Any], architecture: str, facts: Facts) -> Card:
    how = (
        f"by the regression mean of {len(record['regression_means'])} linear layers (RegMean, arXiv 2212.09849; "
        f"off-diagonal entries times {record['off_diagonal']}) and the mean of all other tensors"
        if record["method"] == "regmean"
        else "by the mean of all tensors"
    )
    sources = tuple((each["name"], f"`{each['sha256']}`") for each in record["sources"])
    return Card(
        title="Merged by kinfolk",
        summary=f"Made from {len(record['sources'])} models of one shape, {how}. Not trained since.",
        tags=("kinfolk", "merge", architecture),
        facts=facts,
        relation="merge",
        lineage=Part(tables=(Table(("source", "SHA-256"), sources),)),
        limits=("Not evaluated: `kinfolk evaluate` does that.",),
        usage=load_code(None),
        built=Part(f"`kinfolk merge`; `{RECORD}` says what is needed to do it again."),
    )
