"""Post-train once, use it on every member: value networks, the pair of base and value, vocabularies, decoding.

Importing this package makes pairs known to transformers: AutoConfig and AutoModelForCausalLM then load their folders.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from kinfolk.transfer.config import PairConfig
from kinfolk.transfer.folder import load_pair, save_pair
from kinfolk.transfer.head import zero_head
from kinfolk.transfer.pair import Pair

__all__ = ["Pair", "PairConfig", "load_pair", "save_pair", "zero_head"]

AutoConfig.register(PairConfig.model_type, PairConfig, exist_ok=True)
AutoModelForCausalLM.register(PairConfig, Pair, exist_ok=True)
