"""Two models of any tokenizers on the same documents: bits per byte, document by document.

Tokens of different tokenizers cannot be held against each other, documents can: both models put a probability on the
same text.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import FEWEST, ratio_interval
from kinfolk.evaluate.loss import DocumentLosses

_QUANTILES = (0.05, 0.5, 0.95)


def compare_by_document(first: DocumentLosses, second: DocumentLosses) -> dict[str, Any]:
    """Bits per byte of both over the documents that both score: see `compare_documents`.

    KinfolkError without a common document.
    """
    common = [document for document in first.nats if document in second.nats]
    if not common:
        raise KinfolkError("the models have no document in common", fix="give them the same text")
    sizes = np.array([first.sizes[document] for document in common], dtype=np.int64)
    bits = [np.array([model.nats[document].sum() for document in common]) / math.log(2) for model in (first, second)]
    return compare_documents(bits[0], bits[1], sizes)


def compare_documents(
    first: NDArray[np.float64], second: NDArray[np.float64], sizes: NDArray[np.int64]
) -> dict[str, Any]:
    """Two models by what they make of the same documents: bits and UTF-8 bytes, each (documents,).

    `difference` is that of the second minus the first, over all bytes, with its 90 % interval over documents
    (None for fewer than five) and quantiles over documents. `rank_correlation` is Spearman's; None for fewer than five
    documents, or where one model finds all equally hard.
    """
    low, high = ratio_interval(second - first, sizes)
    by_document = (second - first) / sizes
    return {
        "documents": len(sizes),
        "bytes": int(sizes.sum()),
        "first_bits_per_byte": float(first.sum() / sizes.sum()),
        "second_bits_per_byte": float(second.sum() / sizes.sum()),
        "difference": {
            "mean": float((second - first).sum() / sizes.sum()),
            "low": low,
            "high": high,
            "quantiles": {f"{share:g}": float(np.quantile(by_document, share)) for share in _QUANTILES},
        },
        "second_better_share": float((by_document < 0).mean()),
        "rank_correlation": _rank_correlation(first / sizes, second / sizes),
    }


def _rank_correlation(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float | None:
    from scipy.stats import spearmanr

    if len(first) < FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
