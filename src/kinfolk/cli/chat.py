"""kinfolk chat"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.errors import KinfolkError


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A member, a pair, or any Hugging Face checkpoint.")],
    value: Annotated[Path | None, typer.Option(help="A value network to add to the model.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the value network; by default as trained.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop, instead of asking.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json_: JsonOption = False,
) -> None:
    """Talk to a model in the terminal, alone or with a value network."""
    from rich.console import Console

    if json_ and prompt is None:
        raise KinfolkError("--json is for one answer", where="--json", fix="give --prompt TEXT")
    with Console(stderr=True).status(f"loading {model}"):
        from transformers import TextStreamer

        from kinfolk.serve.load import load_with_value
        from kinfolk.transfer.chat import Sampling, answer

        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        loaded, tokenizer = load_with_value(model, value, alpha)
    streamer: Any = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if prompt is not None:
        found = answer(loaded, tokenizer, [{"role": "user", "content": prompt}], sampling, None if json_ else streamer)
        if json_:
            print(json.dumps({"model": model, "prompt": prompt, **found.to_dict()}, indent=2, allow_nan=False))
        return
    print("An empty line ends the conversation.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while line := _asked():
        messages.append({"role": "user", "content": line})
        found = answer(loaded, tokenizer, messages, sampling, streamer)
        messages.append({"role": "assistant", "content": found.text})


def _asked() -> str:
    """The next line, stripped; "" at the end of input."""
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
