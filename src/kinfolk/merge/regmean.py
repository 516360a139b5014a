"""Regression mean of linear layers (RegMean, Jin et al., arXiv 2212.09849, section 3).

Of layers W_i (in, out) that saw inputs X_i (n_i, in), the layer that minimises sum_i ||X_i W - X_i W_i||^2 / n_i is
(sum G_i)^-1 sum G_i W_i with G_i = X_i^T X_i / n_i. Shrinking the off-diagonal entries of G_i by a factor a below 1
keeps it from leaning on correlations that the text happens to have (ibid., section 3.3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-8
"""Of the mean diagonal entry, added to the diagonal: directions that no input has get the plain mean."""


def shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    """a G + (1 - a) diag(G) for a Gram matrix (in, in): its off-diagonal entries times `off_diagonal`.

    >>> shrunk(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.5).tolist()
    [[2.0, 0.5], [0.5, 2.0]]
    """
    return off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())


@dataclass
class RegressionSums:
    """What the regression mean of one layer needs of all models, in float64: no model's own Gram matrix is kept."""

    gram: Tensor
    """sum G_i (in, in)"""
    product: Tensor
    """sum G_i W_i (in, out)"""
    weights: Tensor
    """sum W_i (in, out)"""
    models: int = 0

    @classmethod
    def zero(cls, inputs: int, outputs: int, device: torch.device | str = "cpu") -> "RegressionSums":
        """Of no model yet."""

        def zeros(columns: int) -> Tensor:
            return torch.zeros(inputs, columns, dtype=torch.float64, device=device)

        return cls(zeros(inputs), zeros(outputs), zeros(outputs))

    def add(self, gram: Tensor, weight: Tensor) -> None:
        """Take in a model: its Gram matrix (in, in), shrunk already, and its weight (in, out)."""
        gram, weight = gram.double(), weight.double()
        self.gram += gram
        self.product += gram @ weight
        self.weights += weight
        self.models += 1

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """The regression mean (in, out) in float64; the plain mean where no input was other than zero."""
        mean = self.weights / self.models
        size = float(self.gram.diagonal().mean())
        if size == 0:
            return mean
        strength = ridge * size
        identity = torch.eye(self.gram.shape[0], dtype=torch.float64, device=self.gram.device)
        solution: Tensor = torch.linalg.solve(self.gram + strength * identity, self.product + strength * mean)
        return solution
