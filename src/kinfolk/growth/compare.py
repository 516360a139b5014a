"""Parent and child on the same tokens: logits, loss, and the residual stream after every layer.

The parent runs first. Its hidden states wait on the disk for the child's, and logits are made window by window, so the
memory needed is that of one layer's activations and of one window's logits, whatever the models.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.growth.axes import Axis
from kinfolk.growth.depth import layer_map
from kinfolk.growth.precision import computing_in
from kinfolk.growth.rows import TensorRows
from kinfolk.growth.sizes import Sizes
from kinfolk.growth.tables import table_of
from kinfolk.growth.width import WidthGrowth
from kinfolk.plan.stages import Operator


@dataclass(frozen=True)
class Comparison:
    """Parent and child on the same tokens in one dtype."""

    max_abs_logit_difference: float
    """Over the tokens of the parent's vocabulary."""
    mean_abs_logit_difference: float
    max_abs_logit: float
    """Of the parent: the scale of the differences."""
    kl: float
    """Mean over tokens of KL(parent || child), in nats."""
    loss_before: float
    """Mean next-token cross-entropy of the parent, in nats."""
    loss_after: float
    """The same of the child."""
    tolerance: float
    """Relative difference that still counts as the same function."""
    max_residual_difference: float | None = None
    """Largest difference of the residual stream from what the parent's becomes by the operator, after the embedding and
    after every layer, relative to its largest entry there; None where that was not compared."""
    worst_layer: int | None = None
    """The child's layer after which it was found, -1 for the embedding."""
    new_token_mass: float = 0.0
    """Mean probability that the child gives to tokens that the parent does not have."""

    @property
    def within_tolerance(self) -> bool:
        # Written so that a NaN is not within.
        logits = self.max_abs_logit_difference <= self.tolerance * self.max_abs_logit
        return logits and (self.max_residual_difference is None or self.max_residual_difference <= self.tolerance)


@dataclass(frozen=True)
class ResidualMap:
    """What the child's residual stream must be after each of its layers."""

    width: WidthGrowth
    layers: tuple[int, ...]
    """The parent's layer whose output each layer of the child must have."""
    prefix: str

    @classmethod
    def of(cls, architecture: str, parent: Sizes, child: Sizes, operator: Operator) -> "ResidualMap":
        """Of an operator that claims to preserve the function: a layer that it adds changes nothing."""
        numbers = (parent.shape.num_hidden_layers, child.shape.num_hidden_layers)
        layers, reached = [], -1
        for layer in layer_map(*numbers, depth=operator.depth, placement=operator.placement):
            reached += not layer.is_new
            layers.append(reached)
        table = table_of(architecture)
        return cls(WidthGrowth(parent, child, operator, architecture), tuple(layers), table.layer_prefix.rstrip("."))

    def expected(self, hidden: Tensor) -> Tensor:
        """The child's from the parent's, both (tokens, hidden)."""
        return self.width.expanded(TensorRows(hidden), (Axis.POSITION, Axis.HIDDEN_WRITE))


class ClaimError(KinfolkError):
    """A growth does not preserve what its operator claims."""

    def __init__(self, comparison: Comparison, description: str) -> None:
        found = f"the largest difference of a logit is {comparison.max_abs_logit_difference:.3g}"
        if comparison.max_residual_difference is not None:
            where = "the embedding" if comparison.worst_layer == -1 else f"layer {comparison.worst_layer}"
            found += f", of the residual stream {comparison.max_residual_difference:.3g} of its scale after {where}"
        super().__init__(
            f"{description}: claims to preserve the function and does not: {found}; nothing was kept",
            fix="look at the source, whose numbers may be too large for the dtype; otherwise please report it",
        )
        self.comparison = comparison


def compare(
    parent: Any,
    child: Any,
    tokens: Tensor,
    dtype: torch.dtype,
    tolerance: float,
    residual: ResidualMap | None = None,
    scratch: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Comparison:
    """Run two causal models of transformers, in evaluation mode and in `dtype`, on `tokens` (batch, time).

    `scratch` is a folder for the parent's hidden states; by default that of temporary files.
    """
    with torch.no_grad(), computing_in(dtype), tempfile.TemporaryFile(dir=scratch) as spool:
        states = _States(spool)
        with _watched(parent, residual, lambda layer, hidden: states.put(layer, hidden)):
            before = _hidden(parent, tokens)
        worst = _Worst(states, residual, progress)
        with _watched(child, residual, worst.look):
            after = _hidden(child, tokens)
        totals = _Totals(tokens)
        for row in range(len(tokens)):
            logits = [_logits(model, output, row, tokens) for model, output in ((parent, before), (child, after))]
            totals.add(row, *logits)
            progress("comparing logits", row + 1, len(tokens))
        return totals.comparison(tolerance, worst.difference if residual else None, worst.layer)


class _Totals:
    """Sums over windows."""

    def __init__(self, tokens: Tensor) -> None:
        self._targets = tokens.cpu()
        self._largest = self._scale = torch.zeros((), dtype=torch.float64)
        self._difference = self._kl = self._before = self._after = self._mass = 0.0
        self._numbers = 0

    def add(self, row: int, before: Tensor, after: Tensor) -> None:
        """The logits of one window, (time, vocabulary)."""
        old = before.shape[-1]
        if after.shape[-1] < old or len(before) != len(after):
            raise KinfolkError(
                f"the parent gives logits of {tuple(before.shape)} and the child of {tuple(after.shape)}",
                fix="compare models of one vocabulary, or a child of a larger one",
            )
        targets = self._targets[row, 1:]
        difference = (after[:, :old] - before).abs().double()
        # Not built-in max(), which would drop a NaN.
        self._largest = torch.maximum(self._largest, difference.max())
        self._scale = torch.maximum(self._scale, before.abs().max().double())
        self._difference += float(difference.sum())
        self._numbers += before.numel()
        for position in range(len(before)):
            log_p, log_q = (each[position].double().log_softmax(-1) for each in (before, after))
            ratio = log_q[:old] - log_p
            # Equals sum p (log p - log q) for normalised p and q; each term is non-negative, so none cancel. Of what
            # q gives to new tokens, the same sum over all of them has q itself as its term.
            mass = float(log_q[old:].exp().sum())
            self._mass += mass
            self._kl += float((log_p.exp() * (torch.expm1(ratio) - ratio)).sum()) + mass
            if position < len(targets):
                self._before -= float(log_p[targets[position]])
                self._after -= float(log_q[targets[position]])

    def comparison(self, tolerance: float, residual: float | None, layer: int | None) -> Comparison:
        rows, time = self._targets.shape
        predicted = rows * (time - 1)
        return Comparison(
            max_abs_logit_difference=float(self._largest),
            mean_abs_logit_difference=self._difference / self._numbers,
            max_abs_logit=float(self._scale),
            kl=self._kl / (rows * time),
            loss_before=self._before / predicted,
            loss_after=self._after / predicted,
            tolerance=tolerance,
            max_residual_difference=residual,
            worst_layer=layer,
            new_token_mass=self._mass / (rows * time),
        )


class _States:
    """The parent's hidden states on the disk, by layer."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._places: dict[int, tuple[int, tuple[int, ...], torch.dtype]] = {}

    def put(self, layer: int, hidden: Tensor) -> None:
        self._places[layer] = (self._file.tell(), tuple(hidden.shape), hidden.dtype)
        self._file.write(hidden.contiguous().view(torch.uint8).numpy().data)

    def get(self, layer: int) -> Tensor:
        start, shape, dtype = self._places[layer]
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(start)
        self._file.readinto(tensor.view(torch.uint8).numpy().data)
        return tensor


class _Worst:
    """The layer of the child that is farthest from where it must be."""

    def __init__(
        self, states: _States, residual: ResidualMap | None, progress: Callable[[str, int, int], None]
    ) -> None:
        self._states, self._residual, self._progress = states, residual, progress
        self.difference = 0.0
        self.layer: int | None = None

    def look(self, layer: int, hidden: Tensor) -> None:
        assert self._residual is not None
        layers = self._residual.layers
        expected = self._residual.expected(self._states.get(layers[layer] if layer >= 0 else -1))
        difference = float((hidden.double() - expected.double()).abs().max() / expected.abs().max().double())
        # A NaN is the worst of all, and stays it.
        if (self.layer is None or not difference <= self.difference) and not math.isnan(self.difference):
            self.difference, self.layer = difference, layer
        self._progress("comparing layers", layer + 1, len(layers))


@contextmanager
def _watched(model: Any, residual: ResidualMap | None, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show the residual stream before the first layer (as layer -1) and after each, as (tokens, hidden)."""
    if residual is None:
        yield
        return
    layers = list(model.get_submodule(residual.prefix))

    def show(layer: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        see(layer, hidden.detach().flatten(0, 1).cpu())

    def show_input(module: Any, arguments: Any, keywords: Any) -> None:
        show(-1, arguments[0] if arguments else keywords["hidden_states"])

    hooks = [layers[0].register_forward_pre_hook(show_input, with_kwargs=True)]
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(lambda m, i, output, number=number: show(number, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hidden(model: Any, tokens: Tensor) -> Any:
    """The output of everything below the head."""
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    return model.base_model(input_ids=tokens.to(device), use_cache=False)


def _logits(model: Any, output: Any, row: int, tokens: Tensor) -> Tensor:
    """The logits of one window on the CPU, (time, vocabulary), by the model's own head."""
    base = model.base_model
    part = type(output)(last_hidden_state=output.last_hidden_state[row : row + 1])
    base.forward = lambda *arguments, **keywords: part
    try:
        ids = tokens[row : row + 1].to(part.last_hidden_state.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].cpu()
    finally:
        del base.forward
    return logits
