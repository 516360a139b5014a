"""Muon: the momentum of a hidden matrix, made orthogonal, is its update.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), in the form of Moonshot (arXiv
2502.16982): updates are scaled to the root mean square of AdamW's, so that its rate and weight decay serve both.
torch.optim.Muon computes the same; it knows no sharded matrices and no cautious decay, and multiplies in bfloat16 also
where the hardware does not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from kinfolk.train.shards import Split, sharing_of, splits_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5. It is steep at 0 and does not converge: singular values end between 0.68 and 1.14."""

STEPS = 5

SCALE = 0.2
"""Root mean square of an update, as AdamW's is found to be (arXiv 2502.16982, section 2.2)."""

Direction = Callable[[nn.Parameter], Tensor]
"""Gives the momentum of a matrix; of a sharded one, what this process holds of it."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T for a matrix U S V^T, by the Newton-Schulz iteration: same shape and dtype; zeros stay zeros.

    Products are taken in bfloat16 on a GPU, and in the matrix's own precision on a CPU.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1 now
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrix.dtype)


def scale_of(shape: Sequence[int]) -> float:
    """Factor that gives an orthogonal matrix the root mean square `SCALE`."""
    return SCALE * math.sqrt(max(shape))


def orthogonal_updates(
    parameters: Sequence[nn.Parameter], direction: Direction
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each matrix with its update for a rate of 1; of a sharded one, what this process holds of it.

    The iteration needs whole matrices. Sharded ones are gathered, as many as there are processes; each process makes
    one of them orthogonal and sends every other its share. Replicas do so each for themselves.
    """
    for _, together in groupby(parameters, sharing_of):
        matrices = list(together)
        processes = math.prod(line.size() for line, _ in splits_of(matrices[0]))
        for start in range(0, len(matrices), processes):
            some = matrices[start : start + processes]
            yield from zip(some, _updates(some, direction), strict=True)


def _updates(parameters: Sequence[nn.Parameter], direction: Direction) -> list[Tensor]:
    if not isinstance(parameters[0], DTensor):
        return [_update(direction(parameter)) for parameter in parameters]
    splits = [splits_of(parameter) for parameter in parameters]
    rank = 0
    for line, _ in splits[0]:
        rank = rank * line.size() + line.get_local_rank()
    own: list[Tensor] = []  # the one of this process, if it has one
    for owner, parameter in enumerate(parameters):
        whole = _gathered(direction(parameter), parameter.shape, splits[owner])
        if owner == rank:
            own.append(whole)
    made = [_update(whole) for whole in own]
    shares = []
    for owner, parameter in enumerate(parameters):
        # Of all but the owner's tensor, only the shape is asked.
        blank = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        shares.append(_share(made[0] if owner == rank else blank, splits[owner], owner))
    return shares


def _update(direction: Tensor) -> Tensor:
    return orthogonalised(direction) * scale_of(direction.shape)


def _gathered(held: Tensor, shape: Sequence[int], splits: Sequence[Split]) -> Tensor:
    """The whole tensor of a shape, of which this process holds `held`."""
    if not splits:
        return held
    (line, dimension), *finer = splits
    if finer:  # then the parts of this split are even
        part = [size // line.size() if each == dimension else size for each, size in enumerate(shape)]
        held = _gathered(held, part, finer)
    size = torch.Size(shape)
    stride = torch.empty(size, device="meta").stride()
    placed = DTensor.from_local(held, line, [Shard(dimension)], run_check=False, shape=size, stride=stride)
    whole: Tensor = placed.full_tensor()
    return whole


def _share(whole: Tensor, splits: Sequence[Split], owner: int) -> Tensor:
    """What this process gets of a whole tensor that process `owner` of those that share it has.

    Their numbers run fastest along the last split. A line of processes without the owner hands around what is blank,
    and the next split overwrites it.
    """
    for place, (line, dimension) in enumerate(splits):
        behind = math.prod(each.size() for each, _ in splits[place + 1 :])
        source = owner // behind % line.size()
        whole = distribute_tensor(whole, line, [Shard(dimension)], src_data_rank=source).to_local()
    return whole
