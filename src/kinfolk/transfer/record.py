"""What a result of post-training says of itself: transfer.json beside a stock checkpoint. No times and no paths of the
machine, so that the same run gives the same bytes."""

import copy
import hashlib
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.build.members import export_member
from kinfolk.build.provenance import versions
from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json
from kinfolk.transfer.sources import tokenizer_hash
from kinfolk.transfer.template import ChatTemplate
from kinfolk.transfer.training import Material

RECORD = "transfer.json"


def transfer_record(
    document: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    material: Material,
    results: dict[str, Any],
) -> dict[str, Any]:
    """What transfer.json holds: the run's settings, what they were applied to, and the results."""
    return {
        **document,
        "tokenizer": {"sha256": tokenizer_hash(tokenizer), "entries": len(tokenizer.get_vocab())},
        "chat_template": {"source": template.origin, "sha256": hashlib.sha256(template.source.encode()).hexdigest()},
        "demonstrations": {"train": material.train.counts(), "held_out": material.held_out.counts()},
        "results": results,
        "versions": versions(),
    }


def export(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    record: dict[str, Any],
    card: str,
) -> str:
    """Write model, tokenizer with chat template, transfer.json and README.md; returns the SHA-256 of the weights."""
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = template.source
    return export_member(target, model, with_template, card, {RECORD: record})


def read_record(folder: Path) -> dict[str, Any] | None:
    """The transfer.json of a checkpoint; None where there is none. KinfolkError for a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = parse_json(path.read_bytes())
        if isinstance(record, dict) and isinstance(record["tokenizer"]["sha256"], str) and "kind" in record:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise KinfolkError("not the record of a result of post-training", where=str(path), fix="restore the file")


def check_fits(value: Path, base: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Refuse a value network that was made for other token ids than those of the base's `tokenizer`.

    Returns its record, with the scheme and alpha to use it by, or None for a checkpoint that has none (a plain model,
    whose own tokenizer is for the caller to compare). Any base with the same tokenizer fits: that is what transfer is
    for.
    """
    record = read_record(value)
    if record is None:
        return None
    if record["kind"] != "value":
        raise KinfolkError(
            f"a {record['kind']} model, no value network: it is used alone",
            where=str(value),
            fix="give the folder `value` of a run of kinfolk transfer train",
        )
    if record["tokenizer"]["sha256"] != tokenizer_hash(tokenizer):
        names = ", ".join(base["name"] for base in record["bases"])
        raise KinfolkError(
            f"the value network was made for another tokenizer than that of {base} (it was trained on {names}, with "
            f"{record['tokenizer']['entries']:,} entries)",
            where=str(value),
            fix="use a base with that tokenizer",
        )
    return record
