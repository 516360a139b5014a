"""The model card of an export: what it was made from, and what that cost."""

from typing import Any

from kinfolk.card.card import Card, Facts, Part, Result, Table, load_code
from kinfolk.export.cost import Cost


def export_card(name: str, facts: Facts, record: dict[str, Any], cost: Cost) -> Card:
    """Of the checkpoint called `name`, exported as `record` says at that cost; `facts` are those of its own card."""
    form = record["format"]
    is_gguf = form.startswith("gguf-")
    settings: dict[str, Any] = {"context_length": cost.context_length, "stride": cost.stride}
    text = f"text with SHA-256 {record['text_sha256'][:12]}"
    difference = "-"
    if cost.bits_per_byte_low is not None and cost.bits_per_byte_high is not None:
        difference = f"{cost.bits_per_byte_low:+.5f} to {cost.bits_per_byte_high:+.5f}"
    row = (
        f"{cost.weight_bytes:,} of {cost.original_bytes:,}",
        f"{cost.loss:.4f} ({cost.loss_difference:+.5f})",
        f"{cost.bits_per_byte:.4f}",
        f"{cost.bits_per_byte_difference:+.5f}",
        difference,
    )
    headings = ("bytes", "loss (nats per token)", "bits per byte", "difference to the original", "90 % interval")
    limits = ["All limits of the model that it was exported from hold for it too."]
    if record["stored_as_f16"]:
        limits.append(f"{record['stored_as_f16']} matrices have rows that are no whole blocks, and are stored as f16.")
    software = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return Card(
        title=f"{name}, {form}",
        summary=f"{name} in the format *{form}*"
        + (", for llama.cpp and whatever reads GGUF." if is_gguf else ", for transformers."),
        tags=("kinfolk", "gguf" if is_gguf else form),
        library="gguf" if is_gguf else "transformers",
        facts=facts,
        relation="quantized",
        measured=(
            Result(text, "Held-out text", "loss", "Loss, nats per token", cost.loss, settings),
            Result(text, "Held-out text", "bits_per_byte", "Bits per byte", cost.bits_per_byte, settings),
        ),
        results=Part(
            f"On {cost.documents:,} documents of {cost.bytes:,} bytes, beside the original on the same tokens:",
            (Table(headings, (row,)),),
        ),
        lineage=Part(
            tables=(
                Table(
                    ("file of the original", "SHA-256"),
                    tuple((file, f"`{digest}`") for file, digest in record["source"]["sha256"].items()),
                ),
            )
        ),
        limits=tuple(limits),
        usage=_gguf_code(record) if is_gguf else load_code(None),
        built=Part(f"`kinfolk export {name} --format {form}` with {software}."),
    )


def _gguf_code(record: dict[str, Any]) -> str:
    """transformers reads a GGUF's shape from the config beside it, which knows more than the file."""
    file = next(name for name in record["sha256"] if name.endswith(".gguf"))
    folder, options = '"path/to/this/folder"', f'gguf_file="{file}"'
    return (
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n\n"
        f"config = AutoConfig.from_pretrained({folder})\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder}, {options}, config=config)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder}, {options})"
    )
