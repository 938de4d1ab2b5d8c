"""What is special to route_negatives; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import cpl_kernels
from tests.kernels.route_negatives.spec import SEED


def draw(logits: Tensor, k: int = 2, num_negatives: int = 4, **kwargs: object) -> tuple[Tensor, Tensor]:
    kwargs.setdefault("seed", SEED)
    return cpl_kernels.route_negatives(logits, k, num_negatives, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts", "k"), [(5, 1), (5, 2), (4, 2), (2, 1), (33, 7)], ids=lambda value: f"{value}"
)
def test_never_a_chosen_one_and_never_twice(prompts: int, k: int) -> None:
    """N = 2k is the edge: all that is left is drawn."""
    logits = torch.randn(50, prompts)
    _, chosen = cpl_kernels.route_topk(logits, k)
    weights, indices = draw(logits, k, 6)
    assert weights.shape == indices.shape == (6, 50, k)
    assert indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < prompts)).all()
    assert not (indices[..., :, None] == chosen[None, :, None, :]).any()
    assert all(row.unique().numel() == k for row in indices.flatten(0, 1))


@pytest.mark.parametrize("normalize", ["none", "topk"])
def test_positive_weights_are_those_of_the_chosen(normalize: str) -> None:
    logits = torch.randn(3, 7)
    weights, indices = draw(logits, 3, weights="positive", normalize=normalize)
    assert torch.equal(weights, cpl_kernels.route_topk(logits, 3, normalize)[0].expand(4, -1, -1))
    assert torch.equal(indices, draw(logits, 3)[1])  # the draw does not depend on how it is weighted


def test_every_ordered_selection_is_equally_likely() -> None:
    """Chi-square over 12 ordered pairs, and over the joint outcome of two negatives (independence)."""
    logits = torch.tensor([0.0, 5.0, 0.0, 4.0, 0.0, 0.0]).expand(6000, 6)
    _, indices = draw(logits, 2, 4)
    left = [0, 2, 4, 5]
    pairs = {pair: n for n, pair in enumerate(itertools.permutations(left, 2))}
    codes = torch.tensor([[pairs[tuple(row)] for row in image] for image in indices.tolist()])  # type: ignore[index]
    assert chi_square(codes.flatten(), 12) < 31.3  # 99.9 % of chi-square with 11 degrees of freedom
    joint = codes[0] * 12 + codes[1]
    assert chi_square(joint, 144) < 201.6  # 143 degrees
    neighbours = codes[0, :-1] * 12 + codes[0, 1:]
    assert chi_square(neighbours, 144) < 201.6


def chi_square(codes: Tensor, outcomes: int) -> float:
    counts = torch.bincount(codes, minlength=outcomes).double()
    expected = codes.numel() / outcomes
    return float(((counts - expected) ** 2 / expected).sum())


def test_a_pure_function_of_the_seed() -> None:
    logits = torch.randn(8, 9)
    first = draw(logits, 3)
    assert all(map(torch.equal, first, draw(logits, 3)))
    assert all(map(torch.equal, first, draw(logits, 3, seed=SEED.reshape(1))))
    assert not torch.equal(first[1], draw(logits, 3, seed=SEED + 1)[1])
    assert not torch.equal(first[1], draw(logits, 3, seed=SEED + 2**32)[1])  # the high word counts
    # An image's draws do not depend on the batch around it, nor on how many negatives follow.
    assert torch.equal(first[1][:2, :5], draw(logits[:5], 3, 2)[1])
    # Nor on the dtype of the logits, as long as these are the same.
    half = logits.bfloat16()
    assert torch.equal(draw(half, 3)[1], draw(half.double(), 3)[1])


def test_known_draw() -> None:
    """Pinned, so that a change of the layout of counters, which would change results of training, shows."""
    _, indices = draw(torch.zeros(2, 8), 2, 3, seed=torch.tensor(1))
    assert indices.tolist() == KNOWN


KNOWN = [[[7, 4], [7, 2]], [[2, 6], [6, 7]], [[2, 5], [4, 3]]]


def test_generator_supplies_the_seed_once() -> None:
    logits = torch.randn(4, 9)
    before = torch.Generator().manual_seed(3)
    a = draw(logits, 3, seed=None, generator=before)
    b = draw(logits, 3, seed=None, generator=torch.Generator().manual_seed(3))
    c = draw(logits, 3, seed=None, generator=before)  # its state has moved on
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[1], c[1])
    torch.manual_seed(5)
    d = draw(logits, 3, seed=None)
    torch.manual_seed(5)
    assert torch.equal(d[1], draw(logits, 3, seed=None)[1])


def test_no_gradient() -> None:
    weights, indices = draw(torch.randn(3, 5, requires_grad=True))
    assert not weights.requires_grad
    assert not indices.requires_grad


def test_extreme_logits() -> None:
    """A sharp router: the weights of the rest are 0, which is why weights="positive" exists."""
    logits = torch.tensor([[1e4, -1e4, 0.0, 10.0]])
    assert torch.equal(draw(logits, 1)[0], torch.zeros(4, 1, 1))
    assert torch.equal(draw(logits, 1, weights="positive")[0], torch.ones(4, 1, 1))
    assert torch.isfinite(draw(logits, 2, normalize="topk")[0]).all()


def test_another_seed_is_no_new_compilation() -> None:
    def function(logits: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return cpl_kernels.route_negatives(logits, 2, 4, seed=seed)

    torch._dynamo.reset()
    compiled, logits = torch.compile(function, fullgraph=True, backend="aot_eager"), torch.randn(3, 6)
    with torch.compiler.set_stance("default"):
        compiled(logits, SEED)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert all(map(torch.equal, compiled(logits, SEED + 1), function(logits, SEED + 1)))
