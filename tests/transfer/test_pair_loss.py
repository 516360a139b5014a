import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tiny_family import make_model
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kinfolk.data.loader import sequence_order
from kinfolk.train.engine import alone
from kinfolk.train.gradients import accumulate
from kinfolk.transfer.base_logits import Cached, Recomputed, cache_bytes, write_cache
from kinfolk.transfer.batches import Batch, micro_batches, padded
from kinfolk.transfer.demonstrations import Demonstration, Demonstrations
from kinfolk.transfer.head import zero_head
from kinfolk.transfer.objective import BakeLoss, PairLoss, Regulariser, absolute, divergence, entropy
from kinfolk.transfer.pair import Pair

OTHER = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
SCHEMES = ("residual", "cascade", "cascade_without_text")


def texts(lengths: list[int], prompts: list[int], seed: int = 0, vocabulary: int = 40) -> Demonstrations:
    draw = np.random.default_rng(seed)
    return Demonstrations(
        tuple(
            Demonstration(draw.integers(1, vocabulary, length, dtype=np.int32), np.arange(length) >= prompt)
            for length, prompt in zip(lengths, prompts, strict=True)
        )
    )


def models(vocabulary: int = 40) -> tuple[Any, Any, Any]:
    """Two bases and a value network, in float64."""
    made = [make_model(hidden, seed, vocabulary).double() for hidden, seed in ((16, 1), (24, 2), (16, 3))]
    for base in made[:2]:
        base.requires_grad_(False)
    return made[0], made[1], made[2]


def loss_on(bases: list[Any], value: Any, scheme: str = "residual", **terms: Any) -> PairLoss:
    pairs = [Pair.of(base, value, 1.0, scheme) for base in bases]
    sources = [Recomputed(base) for base in bases]
    return PairLoss(pairs, pairs, sources, sources, Regulariser(**terms))


def expected(bases: list[Any], value: Any, scheme: str, items: Demonstrations) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """Cross-entropy as the paper writes it, text by text without padding; and (z_pair, z_base, d) of responses."""
    total, parts = torch.zeros((), dtype=torch.float64), []
    for base in bases:
        for item in items.items:
            ids = torch.from_numpy(item.ids.astype("int64"))[None]
            z = base(ids).logits
            if scheme == "residual":
                d = value(ids).logits
            else:
                embedding = value.get_input_embeddings()
                expectation = z.softmax(-1) @ embedding.weight
                d = value(inputs_embeds=expectation + (embedding(ids) if scheme == "cascade" else 0)).logits
            at = torch.from_numpy(np.flatnonzero(item.response[1:]))
            total = total + cross_entropy((z + d)[0, at], ids[0, at + 1], reduction="sum") / len(bases)
            parts.append(((z + d)[0, at], z[0, at], d[0, at], d[0]))
    return total, parts


def gradients(value: Any) -> dict[str, Tensor]:
    found = {name: each.grad.clone() for name, each in value.named_parameters()}
    value.zero_grad()
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_is_the_papers_whatever_the_padding(scheme: str, count: int) -> None:
    first, second, value = models()
    bases, items = [first, second][:count], texts([9, 14, 6], [4, 5, 1])
    wanted, _ = expected(bases, value, scheme, items)
    wanted.backward()
    truth = gradients(value)
    objective = loss_on(bases, value, scheme)
    objective.train()
    losses = objective(padded(items, [0, 1, 2]))
    losses.minimised.backward()
    assert losses.cross_entropy.item() == pytest.approx(wanted.item(), rel=1e-5)  # logits are added up in float32
    assert losses.regulariser.item() == 0
    for name, found in gradients(value).items():
        assert torch.linalg.norm(found - truth[name]) < 1e-4 * torch.linalg.norm(truth[name]), name
    assert all(each.grad is None for base in bases for each in base.parameters())


def test_portable_reward_tuning_is_the_residual_scheme_without_a_norm() -> None:
    """softmax(log p_base + r / beta), arXiv 2502.12776."""
    first, _, value = models()
    items, beta = texts([9, 14], [4, 5]), 2.5
    batch = padded(items, [0, 1])
    log_p = first(batch.inputs).logits[batch.scored].log_softmax(1)
    rewarded = log_p + value(batch.inputs).logits[batch.scored] / beta
    pair = Pair.of(first, value, 1 / beta)
    objective = PairLoss([pair], [pair], [Recomputed(first)], [Recomputed(first)], Regulariser())
    wanted = cross_entropy(rewarded, batch.targets, reduction="sum").item()
    assert objective(batch).cross_entropy.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("norm", ["masked", "released", "kl", "entropy", "anchor"])
def test_every_regulariser_is_its_formula(norm: str) -> None:
    first, second, value = models()
    bases, items = [first, second], texts([9, 14, 6], [4, 5, 1])
    kind = {"entropy": {"entropy_weight": 0.7}, "anchor": {"anchor_weight": 0.7}}
    objective = loss_on(bases, value, **kind.get(norm, {"norm": norm, "norm_weight": 0.7}))
    scored = sum(item.scored for item in items.items)
    (batch,) = micro_batches(items, np.arange(3), 1_000)
    _, parts = expected(bases, value, "residual", items)
    if norm == "masked":
        wanted = sum(d.abs().mean(1).sum() for *_, d, _ in parts) / 2 / scored
    elif norm == "released":
        widest = torch.from_numpy(padded(items, [0, 1, 2]).ids[:, :-1].numpy())
        wanted = value(widest).logits.abs().mean()  # over all positions, prompts and padding too
    elif norm == "kl":
        wanted = sum(
            kl_div(log_softmax(z, 1), log_softmax(pair, 1), log_target=True, reduction="sum") for pair, z, *_ in parts
        )
        wanted = wanted / 2 / scored
    elif norm == "entropy":
        wanted = -sum(torch.distributions.Categorical(logits=pair).entropy().sum() for pair, *_ in parts) / 2 / scored
    else:
        batch = Batch(batch.ids, batch.scored, batch.index, positions_per_scored=3.0, is_anchor=True)
        wanted = sum(
            kl_div(log_softmax(z, 1), log_softmax(pair, 1), log_target=True, reduction="sum") for pair, z, *_ in parts
        )
        wanted = wanted / 2 / 3.0 / scored
    objective.train()
    losses = objective(batch)
    assert losses.regulariser.item() / scored == pytest.approx(0.7 * wanted.item(), rel=1e-4)
    assert losses.minimised.item() == pytest.approx((losses.cross_entropy + losses.regulariser).item(), rel=1e-6)
    assert (losses.cross_entropy.item() == 0) == (norm == "anchor")
    losses.minimised.backward()
    objective.eval()
    assert objective(padded(items, [0, 1, 2])).regulariser.item() == 0


def test_prompts_and_padding_move_the_released_norm_only() -> None:
    """The same response behind the same prompt, once alone and once beside a text of many more tokens."""
    first, _, value = models()
    items = texts([9, 30], [4, 29])
    means = {}
    for norm in ("masked", "released"):
        objective = loss_on([first], value, norm=norm, norm_weight=1.0)
        objective.train()
        for index in ([0], [0, 1]):
            (batch,) = micro_batches(items, np.array(index), 1_000)
            scored = int(batch.scored.sum())
            means[norm, len(index)] = objective(batch).regulariser.item() / scored
    of_second = loss_on([first], value, norm="masked", norm_weight=1.0)
    of_second.train()
    alone_ = of_second(padded(items, [1])).regulariser.item()
    assert means["masked", 2] == pytest.approx((means["masked", 1] * 5 + alone_) / 6, rel=1e-6)
    # One row of 8 positions, then two of 29: padding and prompts weigh as much as responses.
    assert abs(means["released", 2] - means["released", 1]) > 1e-3


def test_at_the_optimum_the_norm_fixes_the_gauge_and_leaves_small_changes_out() -> None:
    """One context: minimise CE(softmax(z + d), y) + (lambda / V) sum |d|; transfer.md, section 2."""
    draw, size, weight = np.random.default_rng(4), 11, 0.6
    z = torch.from_numpy(draw.normal(size=size))
    y = torch.from_numpy(draw.dirichlet(np.full(size, 0.4)))

    def loss(d: Tensor) -> Tensor:
        return -(y * log_softmax(z + d, 0)).sum() + weight * absolute(d[None])

    def split(flat: np.ndarray) -> tuple[float, np.ndarray]:
        up, down = (torch.tensor(part, requires_grad=True) for part in np.split(flat, 2))
        value = -(y * log_softmax(z + up - down, 0)).sum() + weight / size * (up + down).sum()
        value.backward()
        return value.item(), np.concatenate([up.grad.numpy(), down.grad.numpy()])

    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000}
    found = minimize(split, np.zeros(2 * size), jac=True, bounds=[(0, None)] * (2 * size), options=options)
    up, down = np.split(found.x, 2)
    d = torch.from_numpy(up - down)
    assert loss(d).item() == pytest.approx(found.fun, abs=1e-9)
    for _ in range(200):
        assert loss(d + torch.from_numpy(draw.normal(size=size)) * 0.01) >= loss(d) - 1e-12
    gap = ((z + d).softmax(0) - y).abs()
    moved = d.abs() > 1e-7
    assert np.median(d.numpy()) == pytest.approx(0, abs=1e-7)
    assert 0 < moved.sum() < size and gap.max() <= weight / size + 1e-6
    assert torch.allclose(gap[moved], torch.full_like(gap[moved], weight / size), atol=1e-6)


@pytest.mark.parametrize("form", [absolute, lambda x: divergence(x, OTHER), entropy])
def test_gradients_of_the_terms(form: Any) -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(form, logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_a_zero_head_step_0_is_the_base_bit_for_bit(tied: bool, scheme: str) -> None:
    base = make_model(24, 2).requires_grad_(False)
    value = zero_head(make_model(16, 3, tie_word_embeddings=tied))
    items = texts([9, 14], [4, 5], vocabulary=300)
    objective = loss_on([base], value, scheme)
    objective.train()
    losses = objective(padded(items, [0, 1]))
    batch = padded(items, [0, 1])
    logits = base(batch.inputs).logits[batch.scored].float()
    assert losses.cross_entropy.item() == cross_entropy(logits, batch.targets, reduction="sum").item()
    losses.minimised.backward()
    moved = {name for name, each in value.named_parameters() if each.grad is not None and each.grad.any()}
    assert moved == {"lm_head.weight"}


@pytest.mark.parametrize("norm", ["masked", "kl"])
def test_micro_batches_and_processes_make_no_difference(norm: str) -> None:
    first, second, value = models()
    items = texts([9, 14, 6, 20, 11, 8], [4, 5, 1, 10, 2, 3])
    objective = loss_on([first, second], value, norm=norm, norm_weight=0.5)
    order = sequence_order(0, 6, 6, seed=3)
    scored = sum(item.scored for item in items.items)
    truth: dict[str, Tensor] = {}
    for most, world in ((1_000, 1), (20, 1), (1, 1), (30, 2), (20, 3)):
        ranks = [micro_batches(items, order, most, rank, world) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        rows = [[len(batch.index) for batch in batches] for batches in ranks]
        assert all(each == rows[0] for each in rows)
        assert sorted(i for batches in ranks for batch in batches for i in batch.index) == list(range(6))
        sums = [accumulate(objective, batches, scored, "float32", alone()) for batches in ranks]
        assert sum(each[0] for each in sums) > 0
        found = gradients(value)
        truth = truth or found
        for name, gradient in found.items():
            assert torch.linalg.norm(gradient - truth[name]) < 1e-4 * torch.linalg.norm(truth[name]), name


def test_cached_logits_are_those_of_the_base(tmp_path: Path) -> None:
    base = make_model(24, 2).requires_grad_(False)
    items = texts([9, 14, 6, 20, 11, 8], [4, 5, 0, 10, 2, 3], vocabulary=300)
    path, told = tmp_path / "cache" / "0.float16", []
    write_cache(path, base, items, 300, 30, "float32", alone(), lambda done, of: told.append((done, of)))
    assert path.stat().st_size == cache_bytes(items, 300) == items.scored * 300 * 2
    assert told[-1] == (6, 6) and len(told) > 2 and [each.name for each in path.parent.iterdir()] == [path.name]
    cached = Cached(path, items, 300)
    for index in ([0], [3, 1], [5, 2, 0, 4]):
        batch = padded(items, index)
        truth = Recomputed(base)(batch).log_softmax(1)
        found = cached(batch)
        assert found.dtype == torch.float32
        assert ((found - truth).abs() <= 2**-11 * truth.abs() + 1e-6).all()  # rounded to half precision


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_baking_is_its_formula_and_alpha_0_bakes_to_0(share: float) -> None:
    first, _, value = models()
    student = make_model(16, 9, 40).double()
    items = texts([9, 14], [4, 5])
    batch = padded(items, [0, 1])
    wanted, parts = expected([first], value, "residual", items)
    pair_rows = torch.cat([pair for pair, *_ in parts])
    own = torch.cat(
        [
            student(torch.from_numpy(item.ids.astype("int64"))[None]).logits[0, np.flatnonzero(item.response[1:])]
            for item in items.items
        ]
    )
    targets = batch.targets
    kl = kl_div(log_softmax(own, 1), log_softmax(pair_rows, 1), log_target=True, reduction="sum")
    total = (1 - share) * cross_entropy(own, targets, reduction="sum") + share * kl
    objective = BakeLoss(student, Pair.of(first, value), share)
    objective.train()
    losses = objective(batch)
    assert losses.minimised.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses.regulariser.item() == pytest.approx(share * kl.item(), rel=1e-4, abs=1e-6)
    assert math.isfinite(wanted.item())
    still = BakeLoss(make_model(16, 1, 40).double(), Pair.of(first, value, 0.0), 1.0)
    still.train()
    zero = still(batch)
    assert abs(zero.minimised.item()) < 1e-6
    zero.minimised.backward()
    assert max(each.grad.abs().max() for each in still.model.parameters()) < 1e-6
