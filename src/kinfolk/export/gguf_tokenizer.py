"""A byte-level BPE in GGUF's terms: tokens, their kinds, merges, and the name of the rule that splits text.

GGUF does not hold the splitting rule itself, only a name that llama.cpp knows; a tokenizer that splits in another way
is refused, since its text would silently fall into other tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

_GPT2 = "gpt-2"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
"""The rules of Llama 3 and Qwen 2, and what llama.cpp calls them."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says of its tokenizer."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    """Of each token: 1 normal, 3 control, 4 added by a user, 5 padding of the embedding."""
    merges: tuple[str, ...]
    splitting: str
    special: dict[str, int]
    """Ids of bos, eos and pad, as far as there are any."""
    adds_bos: bool
    chat_template: str | None

    def add_to(self, writer: "GGUFWriter") -> None:
        """Write all of it."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.splitting)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        writer.add_token_merges(list(self.merges))
        for name, add in (
            ("bos", writer.add_bos_token_id),
            ("eos", writer.add_eos_token_id),
            ("pad", writer.add_pad_token_id),
        ):
            if name in self.special:
                add(self.special[name])
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(folder: Path, rows: int) -> GgufTokenizer:
    """The tokenizer of a checkpoint whose embedding has so many rows.

    KinfolkError for one that is not a byte-level BPE, or splits text in a way that llama.cpp has no name for.
    """
    path = folder / "tokenizer.json"
    content = _content(path)
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise _refusal(path, f"a {model.get('type')} tokenizer")
    if model.get("byte_fallback"):
        raise _refusal(path, "a tokenizer that falls back to bytes")
    splitting = _splitting(content, path)
    tokens, kinds = _tokens(content, rows, path)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    if not pairs:
        raise _refusal(path, "a tokenizer without merges")
    return GgufTokenizer(
        tokens=tokens,
        kinds=kinds,
        merges=tuple(" ".join(pair) for pair in pairs),
        splitting=splitting,
        **_of_transformers(folder),
    )


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise KinfolkError(
            "the folder has no tokenizer.json", where=str(path.parent), fix="copy the tokenizer of the model there"
        )
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise KinfolkError(f"not valid JSON: {error}", where=str(path), fix="restore the file") from error
    if not isinstance(content, dict):
        raise KinfolkError("not a tokenizer", where=str(path), fix="restore the file")
    return content


def _splitting(content: dict[str, Any], path: Path) -> str:
    """What llama.cpp calls the way in which the tokenizer splits text before it merges."""
    rule, normalizer = content.get("pre_tokenizer") or {}, content.get("normalizer")
    parts = rule.get("pretokenizers", [rule]) if rule.get("type") == "Sequence" else [rule]
    last = parts[-1]
    name = None
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if len(parts) == 1 and last.get("use_regex", True):
            name = _GPT2
        elif len(parts) == 2 and parts[0].get("type") == "Split" and not last.get("use_regex", True):
            isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
            name = _SPLITS.get(parts[0].get("pattern", {}).get("Regex")) if isolated else None
    if name is None:
        raise _refusal(path, "a way of splitting text that llama.cpp has no name for")
    # Qwen's files say NFC, which llama.cpp leaves to the caller, as it does for Qwen's own GGUF files.
    if normalizer is not None and not (normalizer.get("type") == "NFC" and name == "qwen2"):
        raise _refusal(path, f"the normalisation {normalizer.get('type')}")
    return name


def _tokens(content: dict[str, Any], rows: int, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every row's token and its kind; rows beyond the tokenizer's entries are padding."""
    by_id = {identifier: (token, 1) for token, identifier in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", []):
        by_id[added["id"]] = (added["content"], 3 if added.get("special") else 4)
    if max(by_id) >= rows:
        raise KinfolkError(
            f"token id {max(by_id)} is beyond the embedding's {rows} rows",
            where=str(path),
            fix="copy the tokenizer that belongs to the model",
        )
    found = [by_id.get(identifier, (f"[PAD{identifier}]", 5)) for identifier in range(rows)]
    return tuple(token for token, _ in found), tuple(kind for _, kind in found)


def _of_transformers(folder: Path) -> dict[str, Any]:
    """What only the tokenizer as transformers loads it says."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    begins = tokenizer("a")["input_ids"][:1]
    template = tokenizer.chat_template
    return {
        "special": {name: identifier for name, identifier in ids.items() if identifier is not None},
        "adds_bos": tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id],
        "chat_template": template if isinstance(template, str) else None,
    }


def _refusal(path: Path, what: str) -> KinfolkError:
    return KinfolkError(
        f"GGUF export does not know {what}",
        where=str(path),
        fix="use a byte-level BPE that splits as GPT-2, Llama 3 or Qwen 2 do, as kinfolk's own tokenizers",
    )
