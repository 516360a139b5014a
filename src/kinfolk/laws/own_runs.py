"""Finished members of a kinfolk run as rows of a runs table: what the plan and the ledger say of each."""

import hashlib
from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.data import FIRST
from kinfolk.json_text import parse_json
from kinfolk.laws.tables import Row
from kinfolk.lines import parse_lines


def own_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """One row for each finished member of the run in `folder`, and what there is to say about them.

    A member that was grown has spent its ancestors' compute too: its tokens are that of the whole lineage over 6N, the
    tokens it would have had alone. Members with patch-level stages are left out: their loss is not on the token law. So
    are those of later versions of the data, which have read something else.
    """
    plan = _document(folder / "plan.json")
    finished = _finished(folder / "ledger.jsonl")
    rows, findings, grown = [], [], []
    try:
        stages = {stage["name"]: stage for stage in plan["stages"]}
        tokenizer = _tokenizer(folder, plan)
        for event in finished:
            lineage = _lineage(stages, event["stage"])
            member, held_out = str(event["member"]), event["held_out"]
            if any(stage.get("objective", {}).get("kind", "token") != "token" for stage in lineage):
                findings.append(f"{folder.name}: {member} is left out: patch-level training is not on the token law")
                continue
            if {name for stage in lineage for name in stage.get("data", [FIRST])} != {FIRST}:
                findings.append(
                    f"{folder.name}: {member} is left out: it was trained on later versions of the data too"
                )
                continue
            if len(lineage) > 1:
                grown.append(member)
            values: dict[str, Any] = {
                "parameters": lineage[-1]["parameters"]["total"],
                "parameters_non_embedding": lineage[-1]["parameters"]["non_embedding"],
                "tokens": _tokens(lineage, "total"),
                "tokens_non_embedding": _tokens(lineage, "non_embedding"),
                "loss": held_out["loss"],
                "bits_per_byte": held_out["bits_per_byte"],
                "tokenizer": tokenizer,
                "evaluation": f"{held_out['tokens']:.0f} tokens of {held_out['bytes']:.0f} bytes",
                "run": folder.name,
                "member": member,
            }
            rows.append(Row(f"{folder.name}/{member}", {key: str(value) for key, value in values.items()}, own=True))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise KinfolkError(
            f"plan.json or ledger.jsonl lacks what a law needs ({error})",
            where=str(folder),
            fix="give a folder that `kinfolk build` has written",
        ) from error
    if not rows and not findings:
        raise KinfolkError("the run has no finished member yet", where=str(folder), fix="go on with the build")
    if grown:
        findings.append(
            f"{folder.name}: {', '.join(grown)} were grown; their tokens are their lineage's compute over 6N, "
            "which takes a parent's compute to be worth as much as their own"
        )
    return rows, findings


def _lineage(stages: dict[str, Any], name: str) -> list[dict[str, Any]]:
    stage = stages[name]
    return [*(_lineage(stages, stage["parent"]) if stage["parent"] else []), stage]


def _tokens(lineage: list[dict[str, Any]], counting: str) -> float:
    return float(
        sum(stage["parameters"][counting] * stage["tokens"] for stage in lineage) / lineage[-1]["parameters"][counting]
    )


def _tokenizer(folder: Path, plan: dict[str, Any]) -> str:
    """What tells tokenizers apart: the bytes of the file, or the size of the vocabulary where there is none."""
    file = folder / "data" / "tokenizer" / "tokenizer.json"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return f"vocabulary of {plan['vocab_size']}"


def _document(path: Path) -> dict[str, Any]:
    fix = "give a folder that `kinfolk build` has written, or a table of runs"
    try:
        document = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise KinfolkError(f"{path.name} cannot be read ({error.strerror})", where=str(path.parent), fix=fix) from error
    except ValueError as error:
        raise KinfolkError("this is not JSON", where=str(path), fix=fix) from error
    if not isinstance(document, dict):
        raise KinfolkError("this is not a plan", where=str(path), fix=fix)
    return document


def _finished(path: Path) -> list[dict[str, Any]]:
    """The last record of each finished member; damaged lines are passed over."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise KinfolkError(
            f"{path.name} cannot be read ({error.strerror})", where=str(path.parent), fix="go on with the build"
        ) from error
    found: dict[str, dict[str, Any]] = {}
    for _, record in parse_lines(text).records:
        if record.get("event") == "member_finished":
            found[str(record.get("member"))] = record
    return list(found.values())
