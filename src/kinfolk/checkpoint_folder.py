"""What can be said about the folder of a Hugging Face checkpoint before anything of it is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.faults import shown
from kinfolk.json_text import parse_json

_MOST_LAYERS = 10_000


def config_content(folder: Path) -> dict[str, Any]:
    """What config.json says. KinfolkError where it is missing, no JSON object, or has layers without end."""
    path = folder / "config.json"
    if not path.is_file():
        raise KinfolkError(
            "the folder has no config.json, so it is not a Hugging Face checkpoint",
            where=str(folder),
            fix="give the folder of a checkpoint, such as runs/NAME/members/MEMBER",
        )
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KinfolkError(f"not valid JSON: {error}", where=str(path), fix="restore the file") from error
    if not isinstance(content, dict):
        raise KinfolkError("not a JSON object", where=str(path), fix="restore the file")
    for name, count in _numbers_of_layers(content):
        if count > _MOST_LAYERS:  # transformers would list or build them all before it reads a weight
            raise KinfolkError(
                f"{name} is {shown(count)}, more than any model has", where=str(path), fix="restore the file"
            )
    return content


def _numbers_of_layers(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The integers of a config, and of configs within it, that are named as num_hidden_layers is."""
    configs = [content]  # and no recursion: they may be nested as deeply as JSON can be read
    while configs:
        for name, value in configs.pop().items():
            if isinstance(value, dict):
                configs.append(value)
            elif isinstance(value, int) and (name.endswith("layers") or name == "n_layer"):
                yield name, value


def no_weights(folder: Path) -> KinfolkError:
    """What to say of a folder without safetensors."""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return KinfolkError(
            "the weights are a pickle, which can run any code when it is loaded, and no safetensors are here",
            where=str(folder),
            fix="convert it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)",
        )
    return KinfolkError("the folder holds no weights (*.safetensors)", where=str(folder), fix="copy them there")


def gguf_file(folder: Path) -> Path | None:
    """The one GGUF file of a folder that has no safetensors; None for any other folder."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 and not any(folder.glob("*.safetensors")) else None
