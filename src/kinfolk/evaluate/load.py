"""Loading what is to be evaluated: any Hugging Face checkpoint, and plain text.

Only safetensors and GGUF, and no remote code: a checkpoint is data, and loading it must not run what it brings along.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as _logging

import kinfolk.transfer  # noqa: F401  (makes pairs known to transformers)
from kinfolk.checkpoint_folder import config_content, gguf_file, no_weights
from kinfolk.errors import KinfolkError, in_short
from kinfolk.train.model import check_token_ready, is_token_ready

logging: Any = _logging
"""transformers' own switches for what it prints; they carry no types."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Without one of them transformers may make an empty tokenizer up instead of failing."""


def load_checkpoint(
    path_or_name: str | Path,
    device: torch.device | str,
    force: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (in evaluation mode, on `device`) and tokenizer of a folder, or of a name on the hub.

    Weights become float32, or stay as they are with `dtype` "auto". Raises KinfolkError for whatever keeps either from
    being loaded, and for weights that were trained on patches last, unless forced.
    """
    name, is_folder = str(path_or_name), Path(path_or_name).is_dir()
    config = load_config(path_or_name)
    check_token_ready(is_token_ready(config), name, force)
    with quiet():
        tokenizer = _load_tokenizer(name, is_folder)
        model = _load_model(name, is_folder, config, dtype)
    return model.to(torch.device(device)).eval(), tokenizer  # type: ignore[arg-type]


def load_config(path_or_name: str | Path) -> PreTrainedConfig:
    """The config of a folder, or of a name on the hub. Raises KinfolkError where no checkpoint can be there."""
    name, is_folder = str(path_or_name), Path(path_or_name).is_dir()
    if is_folder:
        _check_folder(Path(path_or_name))
    elif _looks_like_path(name):
        raise KinfolkError("there is no such folder", where=name, fix="give the folder that holds config.json")
    with quiet():
        return _load_config(name, is_folder)


def separator_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token id that begins a document: the model's BOS, else the tokenizer's BOS or EOS, else None.

    The model's comes first, because it says what the model was trained with: models of kinfolk and of Qwen begin
    documents with what their tokenizer calls EOS.
    """
    ids = (getattr(model.config, "bos_token_id", None), tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((token for token in ids if isinstance(token, int)), None)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, byte for byte (line ends are kept). Raises KinfolkError with file and byte offset."""
    where = str(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise KinfolkError("there is no such file", where=where, fix="give the path of a text file") from error
    except OSError as error:
        raise KinfolkError(f"cannot be read: {error.strerror}", where=where, fix="give a readable text file") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KinfolkError(
            f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8",
            where=where,
            fix="convert the file, for example with: iconv -f latin1 -t utf-8",
        ) from error
    if not text.strip():
        raise KinfolkError("the file holds no text", where=where, fix="give a file with text to score")
    return text


def _check_folder(folder: Path) -> None:
    """What can be said about a folder before transformers reads it."""
    config_content(folder)
    if (folder / "adapter_config.json").is_file():  # which transformers with PEFT adds, a pickle too
        raise KinfolkError(
            "there is an adapter beside the model, and adapters are not read",
            where=str(folder / "adapter_config.json"),
            fix="merge it into the model (PEFT's merge_and_unload), or move the adapter's files elsewhere",
        )
    if gguf_file(folder) is not None:
        return  # which holds the tokenizer too
    if not any(folder.glob("*.safetensors")):
        raise no_weights(folder)
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise _no_tokenizer(str(folder))


# Loading goes through json, safetensors, transformers and the network, each with exceptions of its own; whichever it
# is, the user gets one sentence. (The cause stays attached for whoever debugs.)


def _load_config(name: str, is_folder: bool) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=is_folder)
    except Exception as error:
        raise _config_error(name, is_folder, error) from error
    return config


def _load_model(
    name: str, is_folder: bool, config: PreTrainedConfig, dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    load: Any = AutoModelForCausalLM.from_pretrained
    source: dict[str, Any] = _gguf_option(name, is_folder) or {"use_safetensors": True}
    try:
        with without_bars():
            model, info = load(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=is_folder,
                output_loading_info=True,
                **source,
            )
    except Exception as error:
        raise _weights_error(name, is_folder, error) from error
    # transformers would only warn, and evaluate random weights.
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise KinfolkError(
            f"the weights lack {len(missing)} tensors of the model, first {missing[0]}",
            where=name,
            fix="copy the complete checkpoint",
        )
    loaded: PreTrainedModel = model
    return loaded


def _load_tokenizer(name: str, is_folder: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=is_folder, **_gguf_option(name, is_folder)
        )
    except Exception as error:
        if is_folder:
            raise KinfolkError(
                f"the tokenizer cannot be loaded: {in_short(error)}",
                where=name,
                fix="copy the tokenizer files of the model there, unharmed",
            ) from error
        raise _config_error(name, is_folder, error) from error
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _gguf_option(name: str, is_folder: bool) -> dict[str, str]:
    """What transformers has to be told to read a folder's GGUF file; nothing for any other checkpoint."""
    found = gguf_file(Path(name)) if is_folder else None
    return {} if found is None else {"gguf_file": found.name}


def _config_error(name: str, is_folder: bool, error: Exception) -> KinfolkError:
    message = str(error)
    if "trust_remote_code" in message:
        return KinfolkError(
            "the model brings its own Python code, which is not run",
            where=name,
            fix="use a checkpoint of an architecture that transformers has",
        )
    if "model type" in message or "model_type" in message or "Unrecognized model" in message:
        return KinfolkError(
            f"transformers does not know this architecture: {in_short(error)}",
            where=name,
            fix="use a checkpoint of a known architecture, or update transformers",
        )
    if is_folder:
        return KinfolkError(f"config.json cannot be used: {in_short(error)}", where=name, fix="restore the file")
    return _hub_error(name, error)


def _weights_error(name: str, is_folder: bool, error: Exception) -> KinfolkError:
    if "Unrecognized configuration class" in str(error):
        return KinfolkError("not a causal language model", where=name, fix="use a decoder such as Llama or Qwen3")
    if is_folder:
        return KinfolkError(
            f"the weights cannot be loaded: {in_short(error)}",
            where=name,
            fix="copy the safetensors files again: they are damaged, incomplete or of another model",
        )
    if "safetensors" in str(error):
        return KinfolkError(
            "the hub has no safetensors for this model, and pickles are not loaded",
            where=name,
            fix="use a model with safetensors, or convert it where you trust it and give the folder",
        )
    return _hub_error(name, error)


def _hub_error(name: str, error: Exception) -> KinfolkError:
    return KinfolkError(
        f"there is no such folder, and it cannot be had from the Hugging Face hub: {in_short(error)}",
        where=name,
        fix="check the name and the network, or download the model and give its folder",
    )


def _no_tokenizer(where: str) -> KinfolkError:
    return KinfolkError(
        "the folder has no tokenizer", where=where, fix="copy tokenizer.json and tokenizer_config.json there"
    )


def _looks_like_path(name: str) -> bool:
    """Whether a string is no hub name (NAME or OWNER/NAME), or begins with a folder that is here."""
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    return Path(name).exists() or ("/" in name and Path(name).parent.is_dir())


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep bars of tqdm away that no switch of transformers reaches (GGUF, compressed-tensors)."""
    with redirect_stderr(io.StringIO()):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing warnings and progress bars between the lines of our own output."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
