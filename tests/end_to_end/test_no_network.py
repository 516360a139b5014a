"""Nothing leaves the machine that nobody asked for."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import constants
from micro import family, in_child

from kinfolk.cli.app import app

ASKING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
COMMANDS = (
    ("plan", "family.yaml"),
    ("build", "family.yaml", "--run", "run"),
    ("evaluate", "run/members/small", "run/members/large"),
    ("grow", "run/members/small", "grown", "--to", "num_hidden_layers=2"),
    ("export", "run", "large"),
    ("card", "run"),
    ("report", "run"),
    ("doctor", "family.yaml"),
)

pytestmark = pytest.mark.skipif(constants.HF_HUB_OFFLINE, reason="the hub's library is switched off here anyway")


def asked_by(work: Callable[[], None]) -> list[tuple[str, Any]]:
    """What `work` asks of the network, by Python's audit events. Never comes off again: only for a child process."""
    asked: list[tuple[str, Any]] = []
    sys.addaudithook(lambda event, arguments: asked.append((event, arguments)) if event in ASKING else None)
    work()
    return asked


def test_commands_on_local_files_ask_nothing_of_the_network(tmp_path: Path) -> None:
    family(tmp_path)

    def work() -> None:
        os.chdir(tmp_path)
        for command in COMMANDS:
            typer.main.get_command(app)(list(command), standalone_mode=False)

    assert in_child(lambda: _expect(asked_by(work) == []), tmp_path / "log") == 0, (tmp_path / "log").read_text()


def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    def work() -> None:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)

    assert in_child(lambda: _expect(asked_by(work) != []), tmp_path / "log") == 0, (tmp_path / "log").read_text()


def _expect(condition: bool) -> None:
    assert condition
