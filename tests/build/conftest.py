from pathlib import Path

import pytest
from micro import RecordingView, family

from kinfolk.build.build import build


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished build; to be looked at, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    build(family(folder), folder / "run", RecordingView())
    return folder / "run"
