"""Members, demonstrations, and a finished training that the tests of this folder share."""

from pathlib import Path

import pytest
from tiny_family import View, make_tokenizer, rows, write_member, write_rows
from value_runs import ask

from kinfolk.transfer.value import train_value


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the members small and large, and demonstrations."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = make_tokenizer()
    write_member(folder / "small", 16, 1, tokenizer)
    write_member(folder / "large", 24, 2, tokenizer)
    write_rows(folder / "rows.jsonl", rows())
    (folder / "text.txt").write_text("The raven sees the mill. " * 60, "utf-8")
    return folder


@pytest.fixture(scope="session")
def whole(place: Path) -> Path:
    """A training that nothing interrupted."""
    train_value(ask(place), place / "whole", View())
    return place / "whole"
