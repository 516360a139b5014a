"""Fixtures of the schedule laws' tests: run folders as the report's tests write them."""

from synthetic_run import make_run

__all__ = ["make_run"]
