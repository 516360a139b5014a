"""Fixtures of the report's tests."""

from synthetic_run import make_run

__all__ = ["make_run"]
