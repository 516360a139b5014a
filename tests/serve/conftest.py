"""One server that most tests of this folder share."""

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

import openai
from serving import Running, ready, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running(ready()) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()
