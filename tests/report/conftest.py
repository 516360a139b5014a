"""Fixtures of the report's tests."""

from browsing import browser, report, seen
from synthetic_run import make_run

__all__ = ["browser", "make_run", "report", "seen"]
