"""Fixtures of the schedule laws' tests: run folders as the report's tests write them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "report"))

from synthetic_run import make_run

__all__ = ["make_run"]
