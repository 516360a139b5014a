"""The loss of a model of a run on what is held out of its data."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from kinfolk.build.run import Run
from kinfolk.data.tokens import TokenStore
from kinfolk.evaluate.loss import held_out_documents, score
from kinfolk.train.engine import Engine


def held_out_score(
    run: Run, store: TokenStore, model: PreTrainedModel, engine: Engine, heed: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Score a model, which is spread over the engine, on the held-out documents of `store`; every process calls this.

    They call `heed` after each batch.
    """
    documents, context = held_out_documents(store), run.family.model.context_length

    def progress(tokens: int) -> None:
        heed()

    found = score(model, documents, store.separator_id, context, engine.device, progress=progress, engine=engine)
    return found.to_dict()
