"""The most memory that this process has had."""

import re
import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """In bytes. Of this process alone: getrusage's figure begins with that of the process which started it."""
    try:
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
    except (OSError, IndexError):
        # In bytes on macOS, in KiB elsewhere.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
