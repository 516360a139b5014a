"""Packages that only some exports need."""

import importlib.util

from kinfolk.errors import KinfolkError


def required(package: str, extra: str) -> None:
    """KinfolkError, with what to install, where an optional package is not here."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise KinfolkError(f"the package {name} is not installed", fix=f"pip install 'kinfolk[{extra}]'")
