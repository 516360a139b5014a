from pathlib import Path

import pytest
from micro import LARGE, SEQUENCES_PER_STEP, SMALL, RecordingView, family

from kinfolk.build.build import build

CONTEXT = 16
MEMBERS = [
    {"name": "small", "shape": SMALL, "tokens": 12 * SEQUENCES_PER_STEP * CONTEXT},
    {"name": "large", "shape": LARGE | {"intermediate_size": 64}, "tokens": 14 * SEQUENCES_PER_STEP * CONTEXT},
]
STATED = {"license": "cc-by-4.0", "languages": ["en", "zh"]}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished family whose file states licence and languages; to be looked at, not changed."""
    folder = tmp_path_factory.mktemp("published")
    build(family(folder, members=MEMBERS, card=STATED), folder / "run", RecordingView())
    return folder / "run"
