"""What was measured of a run's members, kept in the run for its report: RUN/evaluation/*.json."""

from pathlib import Path
from typing import Any

from kinfolk import files
from kinfolk.build.members import weights_digest
from kinfolk.evaluate.pairs import PairSettings, matrices

FOLDER = "evaluation"
FORMAT = 1


def keep_consistency(run: Path, members: list[str], settings: PairSettings, pairs: list[dict[str, Any]]) -> Path | None:
    """Write what `compare_pairs` found of all members of a run, on its own held-out documents; returns where.

    Members stand under their names, each with the SHA-256 of its weights, by which a reader can tell whether they are
    the run's still. None where the run's folder may not be written to, which is no reason to fail.
    """
    target = run / FOLDER / "consistency.json"
    names = {path: Path(path).name for path in members}
    document = {
        "format": FORMAT,
        "members": [{"member": names[path], "sha256": weights_digest(Path(path))} for path in members],
        **vars(settings),
        "pairs": [{**pair, "first": names[pair["first"]], "second": names[pair["second"]]} for pair in pairs],
        "matrices": matrices(members, pairs),
    }
    try:
        files.write_json(target, document)
    except OSError:
        return None
    return target
