from pathlib import Path

import pytest
from micro import RecordingView, family, members_of

from kinfolk.build.build import build


@pytest.fixture(scope="package")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Where the family file lies, and the members of a build that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    build(family(folder), folder / "run", RecordingView())
    return folder, members_of(folder / "run")
