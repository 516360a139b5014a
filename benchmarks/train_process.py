"""What benchmarks/train.py measures in a process of its own: it calls itself once more, which prints the result."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("train.py")


def called(*arguments: str) -> dict[str, Any]:
    """What benchmarks/train.py prints last when it is called so; where it fails, this ends with what it said."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
