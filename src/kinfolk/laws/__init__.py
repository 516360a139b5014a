"""Runs become a table (`runs`), a table a law (`fitting`, `loss`), a law a forecast with an interval (`intervals`)."""
