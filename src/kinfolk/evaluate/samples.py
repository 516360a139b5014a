"""Sampled continuations: what a model writes, for people to look at."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import separator_of
from kinfolk.evaluate.loss import evaluation_mode
from kinfolk.train.engine import Engine, alone
from kinfolk.train.model import check_token_ready, is_token_ready

TEMPERATURE = 0.8
TOP_P = 0.95


def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    seed: int,
    device: torch.device | str,
    force: bool = False,
    engine: Engine | None = None,
) -> list[dict[str, str]]:
    """Continue each prompt, as at the beginning of a document; returns {"prompt", "continuation"} for each.

    Nucleus sampling at temperature 0.8 and top-p 0.95. A continuation is a function of the model, its prompt, the
    prompt's place in the list and `seed`; the state of torch's generators is left as it was. It ends at the end of a
    document, after `max_new_tokens`, or where the model's context is full. Raises KinfolkError for a prompt that fills
    the context, for a model whose probabilities are not numbers, and for one that was trained on patches last unless
    forced.

    Every process of an `engine` calls this, where the model is spread over them; all draw the same tokens.
    """
    check_token_ready(is_token_ready(model.config), "the model to sample from", force)
    if max_new_tokens < 1:
        raise KinfolkError(f"max_new_tokens is {max_new_tokens}", fix="use 1 or more")
    device = torch.device(device)
    with evaluation_mode(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        return [
            {
                "prompt": prompt,
                "continuation": _continue(model, tokenizer, prompt, max_new_tokens, seed + place, device, engine),
            }
            for place, prompt in enumerate(prompts)
        ]


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    device: torch.device,
    engine: Engine | None,
) -> str:
    ids = _prompt_ids(model, tokenizer, prompt)
    context = getattr(model.config, "max_position_embeddings", None)
    room = max_new_tokens if not isinstance(context, int) else min(max_new_tokens, context - len(ids))
    if room < 1:
        raise KinfolkError(
            f"a prompt of {len(ids)} tokens fills the model's context of {context}",
            where=f"prompt {prompt[:30]!r}",
            fix="shorten the prompt",
        )
    torch.manual_seed(seed)
    # One prompt at a time: padding to the left would shift positions, and samples would depend on their neighbours.
    output = _generate(model, torch.tensor([ids], device=device), _settings(model, tokenizer, room), engine or alone())
    whole = output[0].tolist()
    # Decoded together with the prompt: alone, the first token of a SentencePiece model would lose its space.
    before, after = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids, whole))
    if after.startswith(before):
        return after[len(before) :]
    return str(tokenizer.decode(whole[len(ids) :], skip_special_tokens=True))


def _prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    separator = separator_of(model, tokenizer)
    ids = [*([] if separator is None else [separator]), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise KinfolkError("an empty prompt, and the tokenizer has no token that begins documents", fix="give a prompt")
    return ids


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, room: int) -> GenerationConfig:
    untyped: Any = GenerationConfig
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    end = tokenizer.eos_token_id if end is None else end
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = end[0] if isinstance(end, list) else end
    settings: GenerationConfig = untyped(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=room,
        eos_token_id=end,
        pad_token_id=0 if padding is None else padding,
    )
    return settings


def _generate(model: PreTrainedModel, ids: Tensor, settings: GenerationConfig, engine: Engine) -> Tensor:
    # Who ended earlier than others, by a rounding, would leave them waiting for its part of the next block.
    agreed: Any = [lambda before, logits: engine.broadcast(logits)]
    try:
        output: Tensor = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), generation_config=settings, logits_processor=agreed
        )
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise KinfolkError(
            "the model's probabilities are not numbers", fix="use a checkpoint from before the run diverged"
        ) from error
    return output
