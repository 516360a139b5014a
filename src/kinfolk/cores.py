"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that this process may use; all of them where the system does not say (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
