"""What a pair of two vocabularies needs besides its two models: the map, both tokenizers, and its files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError, in_short
from kinfolk.files import write_json
from kinfolk.json_text import parse_json
from kinfolk.transfer.alignment import aligned_map, edit_distance_map
from kinfolk.transfer.coverage import MINIMUM, Coverage, check_coverage, measure_coverage
from kinfolk.transfer.healing import Healing, healing
from kinfolk.transfer.pieces import pieces_of
from kinfolk.transfer.retokenize import Retokenizer
from kinfolk.transfer.vocabulary import VocabularyMap, exact_map, first_piece_map

KINDS = ("exact", "first-piece", "edit-distance", "aligned", "healed")
MAP_FILE = "vocabulary_map.safetensors"
_SETTINGS_FILE = "vocabulary_map.json"
_BASE_FOLDER, _VALUE_FOLDER = "base_tokenizer", "value_tokenizer"
_FREQUENCY = "log_frequency"


@dataclass(frozen=True)
class Translation:
    """The map between two vocabularies, and how base tokens become value tokens."""

    map: VocabularyMap
    retokenizer: Retokenizer
    healing: Healing | None = None
    """What turns value logits into the base's vocabulary before the map, which is then one to one."""

    def save(self, folder: Path) -> None:
        """Write the map (safetensors), its settings (JSON) and both tokenizers into a folder."""
        tensors = {"index": self.map.index.cpu(), "weight": self.map.weight.cpu()}
        if self.healing is not None:
            tensors[_FREQUENCY] = self.healing.log_frequency.cpu()
        save_file(tensors, folder / MAP_FILE)
        write_json(folder / _SETTINGS_FILE, {"kind": self.map.kind, "begin": self.retokenizer.begin})
        for name, pieces in ((_BASE_FOLDER, self.retokenizer.base), (_VALUE_FOLDER, self.retokenizer.value)):
            pieces.tokenizer.save_pretrained(folder / name)


def translation(
    base_tokenizer: PreTrainedTokenizerBase,
    value_tokenizer: PreTrainedTokenizerBase,
    held_out: Iterable[str],
    kind: str = "exact",
    aligned_on: Iterable[str] = (),
    begin: int | None = None,
    minimum: float = MINIMUM,
    force: bool = False,
) -> tuple[Translation, Coverage]:
    """Map one vocabulary to another, and how much of held-out responses the map speaks for.

    `kind` is one of `KINDS`; `aligned` needs texts to align on, and `healed` to count tokens in: `aligned_on`. `begin`
    is the value id that the value network's texts begin with, by default its tokenizer's BOS. Raises KinfolkError for a
    tokenizer whose bytes cannot be read off, and for a coverage below `minimum` unless forced.
    """
    base, value = pieces_of(base_tokenizer, "the base's tokenizer"), pieces_of(value_tokenizer, "the value tokenizer")
    healed = healing(base, value, aligned_on) if kind == "healed" else None
    if kind == "aligned":
        known = aligned_map(base, value, aligned_on)
    elif kind == "healed":
        known = first_piece_map(base, value)
    elif kind in KINDS:
        known = {"exact": exact_map, "first-piece": first_piece_map, "edit-distance": edit_distance_map}[kind](
            base, value
        )
    else:
        raise KinfolkError(f"{kind!r} is no map", where="kind", fix=f"use one of {', '.join(KINDS)}")
    coverage = measure_coverage(known, base, value, held_out)
    check_coverage(coverage, minimum, force)
    start = value_tokenizer.bos_token_id if begin is None else begin
    retokenizer = Retokenizer(base, value, None if start is None else int(str(start)))
    return Translation(known if healed is None else healed.map, retokenizer, healed), coverage


def load_translation(folder: Path) -> Translation:
    """What `Translation.save` wrote; KinfolkError where a file of it is missing or damaged."""
    load: Any = AutoTokenizer.from_pretrained
    try:
        settings = parse_json((folder / _SETTINGS_FILE).read_bytes())
        tensors = load_file(folder / MAP_FILE)
        base, value = (
            pieces_of(load(folder / name, local_files_only=True, trust_remote_code=False), str(folder / name))
            for name in (_BASE_FOLDER, _VALUE_FOLDER)
        )
        known = VocabularyMap(settings["kind"], tensors["index"].long(), tensors["weight"].to(torch.float32))
        begin = settings["begin"]
        healed = Healing(base, value, tensors[_FREQUENCY]) if _FREQUENCY in tensors else None
    except KinfolkError:
        raise
    except Exception as error:  # json, safetensors and transformers each raise their own
        raise KinfolkError(
            f"the vocabulary map cannot be loaded: {in_short(error)}",
            where=str(folder),
            fix="copy the complete folder again",
        ) from error
    return Translation(known, Retokenizer(base, value, begin), healed)
