"""What is special to info_nce; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.info_nce import reference
from tests.kernels import targets
from tests.kernels.info_nce.spec import IGNORE, SPEC, case


def test_definition_has_second_derivatives() -> None:
    tiny = case("tiny", "second derivatives by differences", 2, 3).inputs(torch.float64)
    query, key, t = (tiny[name].requires_grad_() for name in ("query", "key", "temperature"))
    rest = (False, IGNORE, "mean")
    assert torch.autograd.gradgradcheck(
        lambda q, k, t: reference.info_nce(q, k, None, None, None, None, t, *rest), (query, key, t)
    )


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def test_is_cross_entropy() -> None:
    query, key, queue = unit(16, 8), unit(20, 8, seed=1), unit(30, 8, seed=2)
    targets = torch.randint(0, 20, (16,))
    targets[3] = IGNORE
    logits = query @ torch.cat((key, queue)).T / 0.07
    for reduction in ("mean", "sum", "none"):
        got = cpl_kernels.info_nce(query, key, targets, queue=queue, reduction=reduction)
        torch.testing.assert_close(got, F.cross_entropy(logits, targets, reduction=reduction))
    got = cpl_kernels.info_nce(query, key[:16], symmetric=True, temperature=0.1)
    logits, diagonal = query @ key[:16].T / 0.1, torch.arange(16)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(got, expected)


def test_another_ignore_index() -> None:
    query, key = unit(4, 8), unit(5, 8, seed=1)
    got = cpl_kernels.info_nce(query, key, ids(4, 0, 2, 0), ignore_index=0)
    torch.testing.assert_close(got, F.cross_entropy(query @ key.T / 0.07, ids(4, 0, 2, 0), ignore_index=0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_without_a_positive_get_neither_loss_nor_gradient(reduction: str, symmetric: bool) -> None:
    query = unit(4, 8).requires_grad_()
    labels = ids(0, 5, 0, IGNORE)
    loss = cpl_kernels.info_nce(query, query_labels=labels, reduction=reduction, symmetric=symmetric)
    if reduction == "none":
        assert torch.equal(loss[[1, 3]], torch.zeros(2, dtype=torch.float64))
        assert (loss[[0, 2]] > 0).all()
    alone = query.detach().clone().requires_grad_()
    nothing = cpl_kernels.info_nce(
        alone, query_labels=ids(0, 1, 2, IGNORE), reduction=reduction, symmetric=symmetric
    )
    nothing.sum().backward()
    assert torch.equal(nothing, torch.zeros_like(nothing))
    assert torch.equal(alone.grad, torch.zeros_like(alone))


@targets.on("info_nce")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [128.0, 8192.0])
def test_similarities_far_beyond_exps_range(target: targets.Target, size: float, dtype: torch.dtype) -> None:
    """exp ends at 88 in fp32; here similarities are +-size / 0.07. Where they are equal they cancel exactly."""
    if not target.computes(SPEC, dtype):
        pytest.skip(reason=f"{target.name} does not compute in {dtype}")
    query = torch.tensor([[size, 0], [0, size]], dtype=dtype, requires_grad=True)
    for key, expected in (
        (torch.eye(2), 0.0),
        (-torch.eye(2), size / 0.07),
        (torch.zeros(2, 2), 0.6931471805599453),
    ):
        with target.serving("info_nce"):
            loss = cpl_kernels.info_nce(query, key.to(dtype), backend=target.backend)
            (grad,) = torch.autograd.grad(loss, query)
        torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(grad).all()


def test_temperature_as_number_tensor_and_vector_of_one() -> None:
    query, key = unit(4, 8).float(), unit(4, 8, seed=1).float()
    number = cpl_kernels.info_nce(query, key, temperature=0.2)
    for t in (torch.tensor(0.2), torch.tensor([0.2]), torch.tensor(0.2, dtype=torch.float64)):
        t.requires_grad_()
        loss = cpl_kernels.info_nce(query, key, temperature=t)
        assert torch.equal(loss, number)
        loss.backward()
        assert t.grad.shape == t.shape
        assert t.grad.dtype == t.dtype


def test_gradient_of_temperature_alone() -> None:
    query, key = unit(4, 8), unit(4, 8, seed=1)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: cpl_kernels.info_nce(query, key, temperature=t, symmetric=True), (t,)
    )


def test_queue_gets_no_gradient() -> None:
    query, key, queue = (unit(3, 4, seed=i).requires_grad_() for i in range(3))
    cpl_kernels.info_nce(query, key, queue=queue).backward()
    assert queue.grad is None
    assert query.grad is not None
    assert not cpl_kernels.info_nce(query.detach(), key.detach(), queue=queue).requires_grad


def test_autocast_casts_the_vectors_and_keeps_the_loss_in_float32() -> None:
    query, key, queue = (unit(16, 64, seed=i).float().requires_grad_() for i in range(3))
    t = torch.tensor(0.07, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cpl_kernels.info_nce(query, key.bfloat16(), queue=queue, temperature=t)
    half = [x.detach().bfloat16() for x in (query, key, queue)]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cpl_kernels.info_nce(half[0], half[1], queue=half[2], temperature=t.detach()))
    exact = cpl_kernels.info_nce(half[0].double(), half[1].double(), queue=half[2].double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)  # sums were fp32, not bf16
    loss.backward()
    assert all(x.grad.dtype == torch.float32 for x in (query, key, t))


def test_keeps_no_matrix() -> None:
    query, key = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.info_nce(query, key, symmetric=True)
    gradients = 2 * 64 * 4  # a small call makes them with the forward
    assert (
        sum(t.numel() for t in kept) <= 2 * 64 * 4 + 2 * 3 * 64 + 1 + gradients + 1
    )  # two sums and a count each way


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction: str) -> None:
    none, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for options in (
        {"key": torch.zeros(0, 3), "symmetric": True},
        {"key": torch.zeros(5, 3), "targets": labels},
        {"query_labels": labels},
    ):
        loss = cpl_kernels.info_nce(none, reduction=reduction, **options)  # type: ignore[arg-type]
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert torch.equal(loss, torch.zeros_like(loss))
        loss.sum().backward()


def test_a_bad_target_gives_nan_where_nobody_looks() -> None:
    """What CUDA does: the backend itself does not check, and reads nothing out of bounds."""
    query, key, t = unit(3, 4), unit(5, 4, seed=1), torch.tensor(0.1, dtype=torch.float64)
    for k, bad in ((key, 5), (key, -1), (None, 1), (None, 3)):
        targets = ids(2, bad, IGNORE)
        outputs = reference.forward(query, k, None, targets, None, None, t, False, IGNORE, "none")
        assert outputs[0].isnan().tolist() == [False, True, False]
        grads = reference.backward(
            torch.ones(3, dtype=torch.float64), query, k, None, targets, None, None, t, *outputs[1:],
            False, IGNORE, "none", True, False, False,
        )  # fmt: skip
        assert grads[0][1].isnan().all()
    assert reference.info_nce(query, key, None, None, None, None, -t, False, IGNORE, "mean").isnan()
