"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import kinfolk

_SOURCE = Path(kinfolk.__file__).parent
_WITH_EXAMPLES = sorted(path for path in _SOURCE.rglob("*.py") if ">>> " in path.read_text("utf-8"))


@pytest.mark.parametrize("path", _WITH_EXAMPLES, ids=lambda path: str(path.relative_to(_SOURCE)))
def test_examples(path: Path) -> None:
    module = importlib.import_module(".".join(("kinfolk", *path.relative_to(_SOURCE).with_suffix("").parts)))
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
