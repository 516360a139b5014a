"""What of a folder belongs in a repository: a list of names, so that nothing else ever leaves the machine."""

import re
from dataclasses import dataclass
from pathlib import Path

from kinfolk.build.snapshot import RECORD as SNAPSHOT
from kinfolk.checkpoint_folder import config_content, no_weights
from kinfolk.errors import KinfolkError
from kinfolk.files import UNFINISHED
from kinfolk.transfer.translation import MAP_FILE as TRANSLATION

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|[^/]+\.gguf")
_OTHERS = re.compile(
    r"README\.md|(LICEN[CS]E|NOTICE)(\.txt|\.md)?"
    r"|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken)\.json"
    r"|model\.safetensors\.index\.json|chat_template\.(jinja|json)|merges\.txt|vocab\.txt|tokenizer\.model|spiece\.model"
    r"|(growth|merge|transfer|export|snapshot)\.json"
)
"""Config, tokenizer, card, licence, and the records of where a checkpoint comes from."""

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
"""An access token of the hub."""


@dataclass(frozen=True)
class Contents:
    """The files of a checkpoint folder."""

    folder: Path
    names: tuple[str, ...]
    left_out: tuple[str, ...]


def contents_of(folder: Path, force: bool) -> Contents:
    """What would be uploaded of a checkpoint folder.

    KinfolkError for a folder without weights, for weights that were trained on patches last or taken out of a training
    that was not over (unless forced), and for an access token in any of the files.
    """
    where = str(folder)
    if folder.name.endswith(UNFINISHED):
        raise KinfolkError("the folder is still being written", where=where, fix="wait, or go on with what writes it")
    if not folder.is_dir():
        raise KinfolkError("there is no such folder", where=where, fix="give a run directory or a checkpoint")
    ready = config_content(folder).get("token_ready", True) is not False
    if not ready and not force:
        raise KinfolkError(
            "these weights were trained on patches last and are no language model yet (token_ready: false)",
            where=where,
            fix="publish a finished member; --force publishes them all the same",
        )
    if (folder / SNAPSHOT).is_file() and not force:
        raise KinfolkError(
            "this model was taken out of a training that was not over",
            where=where,
            fix="publish the finished member; --force publishes it all the same",
        )
    if (folder / TRANSLATION).is_file():
        raise KinfolkError(
            "a pair between two vocabularies can be loaded from a local folder alone",
            where=where,
            fix="publish base and value network, or bake them into one model",
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    names = tuple(name for name in found if _WEIGHTS.fullmatch(name) or _OTHERS.fullmatch(name))
    if not any(_WEIGHTS.fullmatch(name) for name in names):
        raise no_weights(folder)
    for name in names:
        if not _WEIGHTS.fullmatch(name) and _TOKEN.search((folder / name).read_bytes()):
            raise KinfolkError(
                f"{name} holds what looks like an access token of the hub",
                where=where,
                fix="take it out, and revoke the token if it is one",
            )
    others = sorted(path.name for path in folder.iterdir() if path.name not in names)
    return Contents(folder, names, tuple(others))
