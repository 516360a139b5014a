"""kinfolk serve, as a user calls it."""

import builtins
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from serving import MESSAGES, a_model, chat_ids, decoded, greedy
from typer.testing import CliRunner
from vocabularies import tokenizer

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.serve.server import server_of, url_of
from kinfolk.transfer import Pair, save_pair

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    for name, seed in (("base", 1), ("value", 2)):
        a_model(seed).save_pretrained(root / name)
        tokenizer("small").save_pretrained(root / name)
    save_pair(Pair.of(a_model(1), a_model(2)), tokenizer("small"), root / "pair")
    return root


def test_a_base_with_a_value_network_and_alpha_until_it_is_stopped(folders: Path) -> None:
    given = ("serve", folders / "base", "--value", folders / "value", "--alpha", 0.4, "--port", "0", "--json")
    line = [sys.executable, "-m", "kinfolk", *map(str, given)]
    surroundings = {**QUIET, "KINFOLK_API_KEY": "a-key"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
    try:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        assert printed["model"] == "base" and printed["context"] == 128
        client = openai.OpenAI(base_url=printed["url"], api_key="a-key", max_retries=0)
        found = client.chat.completions.create(model="base", messages=MESSAGES, temperature=0, max_tokens=12)
        wanted = greedy(Pair.of(a_model(1), a_model(2), 0.4), chat_ids(), 12)
        assert found.choices[0].message.content == decoded(wanted)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=printed["url"], api_key="another", max_retries=0).models.list()
        port = printed["url"].split(":")[2].split("/")[0]
        taken = CliRunner().invoke(app, ["serve", str(folders / "base"), "--port", port])
        assert isinstance(taken.exception, KinfolkError) and "--port 0" in str(taken.exception)
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM and rest == "" and "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("alpha", "weight"), [((), 1), (("--alpha", "0"), 0)])
def test_a_pair_s_folder_until_ctrl_c(
    folders: Path, monkeypatch: pytest.MonkeyPatch, alpha: tuple[str, ...], weight: float
) -> None:
    answers = []

    def run(served: FastAPI, listening: socket.socket) -> None:
        """As it runs, but asked one thing and then interrupted."""
        own = server_of(served)
        thread = threading.Thread(target=lambda: own.run(sockets=[listening]))
        thread.start()
        try:
            client = openai.OpenAI(base_url=f"{url_of(listening)}/v1", api_key="any", max_retries=0)
            asked = client.chat.completions.create(model="ours", messages=MESSAGES, temperature=0, max_tokens=12)
            answers.append(asked.choices[0].message.content)
        finally:
            own.should_exit = True
            thread.join(20)
        raise KeyboardInterrupt

    monkeypatch.setattr("kinfolk.serve.server.run", run)
    arguments = ["serve", str(folders / "pair"), "--name", "ours", "--context", "64", "--port", "0", *alpha]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130, result.exception
    assert "serving ours at http://127.0.0.1:" in result.stderr
    assert answers == [decoded(greedy(Pair.of(a_model(1), a_model(2), weight), chat_ids(), 12))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "--host", "0.0.0.0"), "no API key"),
        (("base", "--host", "192.0.2.1", "--api-key", "k"), "cannot listen"),
        (("base", "--port", "70000"), "no port"),
        (("base", "--waiting", "-1"), "out of range"),
        (("base", "--timeout", "0"), "out of range"),
        (("base", "--api-key", ""), "empty"),
        (("base", "--alpha", "0.5"), "no value network"),
        (("base", "--context", "129"), "context of 128"),
        (("base", "--context", "1"), "context of 128"),
        (("base", "--device", "meta"), "no device"),
        (("base", "--device", "cuda:77"), "no device"),
        (("/missing",), "no such folder"),
    ],
)
def test_what_cannot_be_served(folders: Path, arguments: tuple[str, ...], message: str) -> None:
    first = folders / arguments[0]
    result = CliRunner().invoke(app, ["serve", str(first), "--port", "0", *arguments[1:]])
    assert isinstance(result.exception, KinfolkError) and message in str(result.exception), result.exception
    assert result.stdout == ""


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    result = CliRunner().invoke(app, ["serve", "anything"])
    assert isinstance(result.exception, KinfolkError)
    assert "uvicorn" in str(result.exception) and "pip install 'kinfolk[serve]'" in str(result.exception)


def test_chat_works_without_the_extra(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("fastapi", "uvicorn", "prometheus_client"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    result = CliRunner().invoke(
        app, ["chat", str(folders / "base"), "--prompt", "x", "--max-new-tokens", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
