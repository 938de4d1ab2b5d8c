"""The contrastive losses of embeddings, against their formulas written out pair by pair in fp64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpl.losses import InfoNCELoss, NTXentLoss, SupConLoss


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_pairs(z: Tensor, positives: list[list[int]], t: float) -> Tensor:
    """The mean over the vectors with a positive of: log of the sum over all others - mean over the positives."""
    z = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i, mine in enumerate(positives):
        if mine:
            s = [(z[i] * other).sum() / t for other in z]
            away = sum(torch.exp(s[j]) for j in range(len(z)) if j != i)
            losses.append(torch.log(away) - sum(s[p] for p in mine) / len(mine))
    return sum(losses) / len(losses)


def test_info_nce_is_cross_entropy_of_cosines():
    query, key, queue = randn(6, 5), randn(8, 5, seed=1), randn(7, 5, seed=2)
    unit = [F.normalize(x) for x in (query, key, queue)]
    logits = unit[0] @ torch.cat(unit[1:]).T / 0.07
    torch.testing.assert_close(
        InfoNCELoss()(query, key, queue=queue), F.cross_entropy(logits, torch.arange(6))
    )
    targets = torch.tensor([7, 0, 3, 3, -100, 1])
    torch.testing.assert_close(
        InfoNCELoss()(query, key, targets, queue=queue), F.cross_entropy(logits, targets)
    )
    for reduction in ("sum", "none"):
        torch.testing.assert_close(
            InfoNCELoss(0.2, normalize=False, reduction=reduction)(query, key, targets),
            F.cross_entropy(query @ key.T / 0.2, targets, reduction=reduction),
        )
    assert InfoNCELoss(ignore_index=0)(query, key, torch.zeros(6, dtype=torch.int64)) == 0


def test_clip_and_its_learnt_temperature():
    query, key = randn(6, 5), randn(6, 5, seed=1)
    loss = InfoNCELoss(symmetric=True, learnable_temperature=True).double()
    assert [name for name, _ in loss.named_parameters()] == ["logit_scale"]
    value = loss(query, key)
    value.backward()
    scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64, requires_grad=True)
    logits = scale.exp() * F.normalize(query) @ F.normalize(key).T
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # log(1 / 0.07) was rounded to float32
    torch.testing.assert_close(loss.logit_scale.grad, scale.grad, rtol=1e-5, atol=0)
    assert not list(InfoNCELoss().parameters())


def test_ntxent_is_the_formula():
    views = randn(4, 5).requires_grad_(), randn(4, 5, seed=1).requires_grad_()
    value = NTXentLoss(temperature=0.3)(*views)
    expected = by_pairs(torch.cat(views), [[4], [5], [6], [7], [0], [1], [2], [3]], 0.3)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    each = NTXentLoss(temperature=0.3, reduction="none")(*views)
    assert each.shape == (8,)
    torch.testing.assert_close(each.mean(), value)


def test_supcon_is_the_formula():
    z = randn(7, 5).requires_grad_()
    labels = torch.tensor([3, 1, 3, 9, 1, 3, -100])
    value = SupConLoss(temperature=0.2)(z, labels)
    expected = by_pairs(z, [[2, 5], [4], [0, 5], [], [1], [0, 2], []], 0.2)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (value, expected)))
    assert SupConLoss()(z, torch.arange(7)) == 0, "nobody has a positive"


def test_supcon_against_others():
    z, ref, labels = randn(4, 5), randn(6, 5, seed=1), torch.tensor([3, 1, 3, 9])
    ref_labels = torch.tensor([3, 3, 1, 1, 2, 2], dtype=torch.int32)
    s = F.normalize(z) @ F.normalize(ref).T / 0.1
    terms = [s[i].logsumexp(0) - s[i, ref_labels == labels[i]].mean() for i in range(3)]
    torch.testing.assert_close(SupConLoss()(z, labels, ref, ref_labels), sum(terms) / 3)


def test_supcon_of_views():
    views = randn(4, 2, 5)
    torch.testing.assert_close(SupConLoss(0.5)(views), NTXentLoss()(views[:, 0], views[:, 1]))
    labels = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(
        SupConLoss()(views, labels), SupConLoss()(views.flatten(0, 1), labels.repeat_interleave(2))
    )


@pytest.mark.parametrize("loss", [InfoNCELoss, NTXentLoss])
def test_bf16_autocast_keeps_the_loss_in_float32(loss):
    views = [randn(8, 16, seed=i).float().requires_grad_() for i in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()(*views)
    value.backward()
    assert value.dtype == views[0].grad.dtype == torch.float32
    torch.testing.assert_close(value, loss()(*views), rtol=0.02, atol=0)


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    views = [randn(4, 5, seed=i).float() for i in range(2)]
    loss = InfoNCELoss(symmetric=True, learnable_temperature=True)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*views), loss(*views))
    torch._dynamo.reset()


def test_it_says_what_it_is():
    assert repr(InfoNCELoss(symmetric=True)) == (
        "InfoNCELoss(temperature=0.07, normalize=True, reduction='mean', symmetric=True)"
    )
    assert "learnable" in repr(nn.Sequential(SupConLoss(learnable_temperature=True)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: InfoNCELoss(temperature=0.0), ValueError, "temperature must be a positive finite number"),
        (lambda z: InfoNCELoss(temperature="1"), TypeError, "temperature must be a number, got '1'"),
        (lambda z: SupConLoss(reduction="avg"), ValueError, "'mean', 'sum', 'none', got 'avg'"),
        (lambda z: InfoNCELoss()(z, z[:2]), ValueError, "M must be at least B = 4, got M = 2"),
        (lambda z: NTXentLoss()(z, z[:2]), ValueError, "two views of the same images, got (4, 3) and (2, 3)"),
        (lambda z: SupConLoss()(z), ValueError, "embeddings [B, D] need labels [B]"),
        (lambda z: SupConLoss()(z[0], z[0]), ValueError, "[B, D] or [B, V, D], got shape (3,)"),
        (lambda z: SupConLoss()(z, torch.arange(4), z), ValueError, "give both or neither"),
        (
            lambda z: SupConLoss()(z[None], None, z, torch.arange(4)),
            ValueError,
            "compared with each other: leave ref_emb out",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(torch.zeros(4, 3))
