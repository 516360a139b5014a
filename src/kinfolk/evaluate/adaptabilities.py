"""The same trial of adaptability for several checkpoints, and for members also before their decay."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinfolk.evaluate import cache
from kinfolk.evaluate.adaptability import Trial, adaptability
from kinfolk.evaluate.decay import before_decay, load_state
from kinfolk.evaluate.measure import Loaded, load
from kinfolk.evaluate.text import Text, run_of


def compare_adaptability(
    paths: list[str],
    text: Text,
    tuning: Text | None,
    *,
    context_length: int,
    stride: int | None,
    trial: Trial,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """A record of plain data for each checkpoint, and behind a member's for its state before the decay, where kept.

    All are read in windows of the same context. `before_decay` says which of the two a record is.
    """
    settings = {
        "text": text.digest(),
        "tuning": tuning.digest() if tuning else None,
        "context_length": context_length,
        "stride": stride,
        "force": force,
        "trial": asdict(trial),
    }

    def record(name: str, digest: str | None, make: Callable[[], Loaded]) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            say(f"changing {name}")
            loaded = make()
            tuned_on = loaded.documents(tuning) if tuning else None
            return adaptability(loaded, loaded.documents(text), tuned_on, context_length, stride, trial)

        return cache.remembered("adaptability", [digest], settings, compute)[0]

    records = []
    for path in paths:
        found = record(path, cache.checkpoint_digest(path), lambda path=path: load(path, force))  # type: ignore[misc]
        records.append({"model": path, "before_decay": False, **found})
        run, member = run_of(path), Path(path).name
        saved = before_decay(run, member) if run is not None else None
        if run is not None and saved is not None:

            def state(path: str = path, run: Path = run, member: str = member, saved: Path = saved) -> Loaded:
                return load_state(run, member, saved, load(path, force))

            found = record(f"{path} before its decay", cache.checkpoint_digest(str(saved)), state)
            records.append({"model": path, "before_decay": True, "checkpoint": str(saved), **found})
    return records
