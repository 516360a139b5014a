"""stories260K (llama2.c) as a stock transformers model and tokenizer: a real pretrained model for exact tests."""

import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MODEL = DATA / "stories260K" / "stories260K.bin"
VOCABULARY = DATA / "stories260K" / "tok512.bin"
TEXT = DATA / "tinystories_sample" / "tinystories.txt"


def load_model() -> LlamaForCausalLM:
    """Read a llama2.c checkpoint of version 0 (header of seven int32, then float32)."""
    content = MODEL.read_bytes()
    hidden, ffn, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", content[:28])
    flat, head_dim = np.frombuffer(content, "<f4", offset=28), hidden // heads
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return torch.from_numpy(flat[at - size : at].reshape(shape).copy())

    state = {"model.embed_tokens.weight": take(vocab, hidden)}
    for name, shape in {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "mlp.up_proj": (ffn, hidden),
    }.items():
        for layer, tensor in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                # The file rotates neighbouring pairs, transformers rotates halves.
                tensor = tensor.reshape(-1, head_dim // 2, 2, hidden).transpose(1, 2).reshape(-1, hidden)
            state[f"model.layers.{layer}.{name}.weight"] = tensor
    state["model.norm.weight"] = take(hidden)
    take(2, context, head_dim // 2)
    assert at == len(flat), "nothing is left over"
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    return model


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary of llama2.c as a BPE of the tokenizers library, with identical ids."""
    content = VOCABULARY.read_bytes()
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    for _ in range(512):
        score, length = struct.unpack_from("<fi", content, at)
        pieces.append(content[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece.decode("utf-8").replace(" ", "▁") for piece in pieces[259:]]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [
        (scores[index], names[index][:cut], names[index][cut:])
        for index in range(259, 512)
        for cut in range(1, len(names[index]))
        if vocabulary.get(names[index][:cut], 0) >= 259 and vocabulary.get(names[index][cut:], 0) >= 259
    ]
    assert len(merges) == 165
    merges.sort(key=lambda merge: -merge[0])
    bpe = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, left, right in merges],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def stories() -> list[str]:
    """The stories of the sample: paragraphs are parted by blank lines, and "Once" or "One day" opens a story."""
    found: list[list[str]] = []
    for paragraph in TEXT.read_text(encoding="utf-8").split("\n\n"):
        if not found or paragraph.strip().startswith(("Once", "One day")):
            found.append([])
        found[-1].append(paragraph)
    return [story for story in ("\n\n".join(parts).strip() for parts in found) if story]
