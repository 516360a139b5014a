"""A pair on disk: one folder of a stock checkpoint, with the base's tokenizer."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk.checkpoint_folder import config_content, no_weights
from kinfolk.errors import KinfolkError, in_short
from kinfolk.files import new_directory
from kinfolk.transfer.card import pair_card
from kinfolk.transfer.config import PairConfig
from kinfolk.transfer.pair import Pair


def save_pair(pair: Pair, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write weights, config, tokenizer and card; `load_pair` reads it, or transformers once this package is imported.

    A pair that is there is replaced as a whole. Raises KinfolkError where something else is.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not _is_pair(target):
        raise KinfolkError("the folder holds something else than a pair", where=str(folder), fix="give a new folder")
    with new_directory(target) as unfinished:
        pair.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(pair_card(pair), "utf-8")


def load_pair(folder: str | Path, **options: Any) -> tuple[Pair, PreTrainedTokenizerBase]:
    """The pair, in evaluation mode, and its tokenizer; `options` go to from_pretrained (dtype, alpha, ...).

    Raises KinfolkError for a folder that holds no complete pair.
    """
    where = Path(folder)
    if config_content(where).get("model_type") != PairConfig.model_type:
        raise KinfolkError("a checkpoint, but not a pair", where=str(folder), fix="give a folder that save_pair wrote")
    if not any(where.glob("*.safetensors")):
        raise no_weights(where)
    try:
        load: Any = Pair.from_pretrained
        pair, info = load(folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except KinfolkError:
        raise
    except Exception as error:  # json, safetensors and transformers each raise their own
        raise KinfolkError(
            f"the pair cannot be loaded: {in_short(error)}", where=str(folder), fix="copy the complete folder again"
        ) from error
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise KinfolkError(
            f"the weights lack {len(missing)} tensors of the pair, first {missing[0]}",
            where=str(folder),
            fix="copy the complete folder again",
        )
    loaded: Pair = pair.eval()
    return loaded, tokenizer


def _is_pair(folder: Path) -> bool:
    return (folder / "config.json").is_file() and config_content(folder).get("model_type") == PairConfig.model_type
