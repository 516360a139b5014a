"""Which column of a table is which, and whether a table holds runs or one run's curve."""

import re
from collections.abc import Iterable, Sequence

from kinfolk.errors import KinfolkError
from kinfolk.laws.tables import Row, names

_USUAL = {
    "steps": ("steps", "totalsteps", "numsteps", "maxsteps", "trainsteps", "iters", "iterations", "horizon"),
    "warmup_steps": ("warmupsteps", "warmup", "numwarmupsteps", "warmupiters"),
    "warmup_from": ("warmupfrom",),
    "peak_lr": ("peaklr", "peak", "peaklearningrate", "maxlr", "lr", "learningrate"),
    "shape": ("shape", "schedule", "decayshape", "decaytype", "scheduler"),
    "decay_fraction": ("decayfraction", "decayshare", "cooldownfraction", "cooldownshare", "fract"),
    "end_ratio": ("endratio", "finalratio", "minlrratio", "endlrratio"),
    "power": ("power",),
    "loss": ("loss", "finalloss", "finalval", "valloss", "validationloss", "evalloss", "heldoutloss", "testloss"),
    "size": ("size", "params", "parameters", "nparams", "nparameters", "modelsize"),
    "tokens_per_step": ("tokensperstep", "batchtokens"),
    "tokens": ("tokens", "traintokens", "trainingtokens"),
    "curve": ("curve", "curvefile"),
    "stopped_at": ("stoppedat", "stopstep", "stoppedstep", "divergedat"),
    "name": ("name", "run", "runname"),
}
"""Names by which columns of a table of runs are known, without case and punctuation, in order of preference."""

_CURVE = {
    "step": ("step", "steps", "iter", "iteration", "globalstep", "trainstep"),
    "lr": ("lr", "learningrate", "rate"),
    "loss": (
        *("loss", "valloss", "validationloss", "evalloss", "heldoutloss", "testloss"),
        *("trainloss", "trainingloss", "lmloss"),
        *("smoothloss", "smoothedloss", "emaloss", "lossema", "losssmooth", "losssmoothed", "avgloss", "meanloss"),
    ),
}


def is_curve(rows: Sequence[Row]) -> bool:
    """Whether the rows are points of one curve rather than runs: a column of steps, and none that only runs have."""
    plain = {_plain(name) for name in rows[0].values}
    settings = {"peaklr", "peak", "peaklearningrate", "maxlr", "shape", "decayfraction", "steps", "iters"}
    return not plain & settings and any(name in plain for name in _CURVE["step"])


def settings_columns(rows: Sequence[Row], needed: Iterable[str], where: str) -> dict[str, str]:
    """The column of each role of a table of runs; KinfolkError that names a needed one that is missing."""
    return _choose(_USUAL, rows, needed, where)


def curve_columns(rows: Sequence[Row], needed: Iterable[str], where: str) -> dict[str, str]:
    """The column of each role of a curve; KinfolkError that names a needed one that is missing."""
    return _choose(_CURVE, rows, needed, where)


def _choose(
    usual: dict[str, tuple[str, ...]], rows: Sequence[Row], needed: Iterable[str], where: str
) -> dict[str, str]:
    plain = {_plain(name): name for name in reversed(list(rows[0].values))}
    found = {
        role: next(plain[name] for name in known if name in plain)
        for role, known in usual.items()
        if any(name in plain for name in known)
    }
    missing = [role for role in needed if role not in found]
    if missing:
        raise KinfolkError(
            f"no column is known to hold {missing[0]}; there are {names(rows)}",
            where=where,
            fix=f"add a column `{missing[0]}`",
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
