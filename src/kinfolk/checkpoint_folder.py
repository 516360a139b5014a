"""What can be said about the folder of a Hugging Face checkpoint before anything of it is loaded."""

from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json


def config_content(folder: Path) -> dict[str, Any]:
    """What config.json says. KinfolkError where it is missing or no JSON object."""
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
    return content


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
