"""kinfolk serve"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.errors import KinfolkError


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A member, a pair, or any Hugging Face checkpoint.")],
    value: Annotated[Path | None, typer.Option(help="A value network to add to the model.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the value network; by default as trained.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="KINFOLK_API_KEY", help="What clients must send as their key.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's id; by default the last part of MODEL.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N; by default a GPU where there is one.")] = None,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Most tokens of prompt and answer; by default the model's own.")
    ] = None,
    waiting: Annotated[int, typer.Option(help="Requests that may wait while one is answered.")] = 16,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="After so long an answer ends where it is.")] = 300,
    json_: Annotated[bool, typer.Option("--json", help="Print the address as one line of JSON, once it listens.")] = (
        False
    ),
) -> None:
    """Serve a model, alone or with a value network, to clients of OpenAI's API."""
    from rich.console import Console

    _check_extra()
    with Console(stderr=True).status(f"loading {model}"):
        from kinfolk.serve.app import create_app
        from kinfolk.serve.limits import Limits
        from kinfolk.serve.load import load_with_value
        from kinfolk.serve.served import device_of, served
        from kinfolk.serve.server import Address, door, listen, run, url_of

        address = Address(host, port)
        limits = Limits(waiting=waiting, generation_seconds=timeout)
        who = door(address, api_key)
        listening = listen(address)
        loaded = load_with_value(model, value, alpha, device_of(device))
        ready = served(*loaded, name or Path(model).resolve().name, context)
    url = f"{url_of(listening)}/v1"
    if json_:
        print(json.dumps({"url": url, "model": ready.name, "context": ready.context}), flush=True)
    else:
        print(f"serving {ready.name} at {url} (stop with Ctrl-C)", file=sys.stderr)
    try:
        run(create_app(ready, who, limits), listening)
    except KeyboardInterrupt:
        sys.exit(130)


def _check_extra() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise KinfolkError(
            f"the server needs what is not installed: {', '.join(missing)}",
            fix="pip install 'kinfolk[serve]'",
        )
