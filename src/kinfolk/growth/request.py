"""What a user asks growth for, from the words of the command line."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import did_you_mean
from kinfolk.growth.configs import Changes, changes_to, read_config
from kinfolk.growth.safetensors import FLOATS
from kinfolk.plan.stages import DepthRule, Dynamics, Operator, Placement, WidthRule


def is_stage(source: Path) -> bool:
    """Whether a folder is that of a stage in a run directory."""
    return (source / "checkpoints").is_dir() and source.parent.name == "stages"


def operator_from(
    width: str, depth: str, placement: str, block: str, split: str, noise: float, snr: float | None, seed: int
) -> Operator:
    """An operator by the names of its parts; KinfolkError for a name that is none."""
    for option, value, known in (
        ("--width", width, get_args(WidthRule)),
        ("--depth", depth, get_args(DepthRule)),
        ("--block", block, ("copied", "drawn")),
        ("--split", split, ("even", "uneven")),
    ):
        if value not in known:
            raise KinfolkError(f"{value!r} is none", where=option, fix=did_you_mean(value, known, "choose from"))
    if not 0 <= noise < float("inf"):
        raise KinfolkError(f"{noise} is no strength of noise", where="--noise", fix="use 0 or more")
    if snr is not None and not abs(snr) <= 200:
        raise KinfolkError(f"{snr} dB is out of range", where="--snr", fix="use -200 to 200; 10 is what was published")
    parts: Any = {"width": width, "depth": depth, "block": block, "split": split}
    return Operator(**parts, placement=_placement(placement), noise=noise, snr=snr, seed=seed)


def dynamics_with(optimizer: str) -> Dynamics:
    """What becomes of Adam's state; KinfolkError for a name that is none."""
    known = get_args(get_type_hints(Dynamics)["optimizer"])
    if optimizer not in known:
        raise KinfolkError(
            f"{optimizer!r} is none", where="--optimizer", fix=did_you_mean(optimizer, known, "choose from")
        )
    chosen: Any = optimizer
    return Dynamics(optimizer=chosen)


def changes_for(to: str) -> Changes:
    """What --to says: fields with their values, or the config.json of a model, or a folder that has one."""
    path = Path(to)
    if to.strip() and (path.is_dir() or path.suffix == ".json"):
        return changes_to(read_config(path if path.is_dir() else path.parent))
    changes: Changes = {}
    for pair in to.split(","):
        field, sign, value = (part.strip() for part in pair.partition("="))
        is_tie = field == "tie_word_embeddings" and value.lower() in ("true", "false")
        if not sign or not field or not (is_tie or (value.isdecimal() and int(value))):
            raise KinfolkError(
                f"{pair.strip()!r} is no FIELD=NUMBER, and {to!r} no folder or config.json",
                where="--to",
                fix="write for example hidden_size=2048,num_hidden_layers=32",
            )
        if field in changes:
            raise KinfolkError(f"{field} is given twice", where="--to", fix="give it once")
        changes[field] = value.lower() == "true" if is_tie else int(value)
    return changes


def dtype_named(name: str, option: str, known: tuple[torch.dtype, ...] | None = None) -> torch.dtype:
    """The dtype of a name; KinfolkError for one that is not known."""
    names = [str(each).removeprefix("torch.") for each in known] if known else list(FLOATS)
    if name not in names:
        raise KinfolkError(f"{name!r} is none", where=option, fix=did_you_mean(name, names, "choose from"))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _placement(text: str) -> Placement:
    if text == "top":
        return "top"
    if text == "even":
        return "even"
    try:
        return tuple(int(place) for place in text.split(","))
    except ValueError:
        raise KinfolkError(
            f"{text!r} is no place", where="--placement", fix="use top, even, or layers of the target such as 2,5"
        ) from None
