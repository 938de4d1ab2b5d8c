"""What is special to route_topk; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import warnings

import pytest
import torch

import cpl_kernels
from cpl_kernels.route_topk import op, reference
from tests.kernels.harness import DTYPES
from tests.kernels.route_topk.spec import distinct


def test_definition_has_second_derivatives() -> None:
    logits = distinct(torch.Generator().manual_seed(0), (3, 5)).requires_grad_()
    for renormalize in (False, True):
        assert torch.autograd.gradgradcheck(
            lambda x, r=renormalize: reference.route_topk(x, 2, r)[0], (logits,)
        )


def test_indices_point_at_the_weights() -> None:
    logits = distinct(torch.Generator().manual_seed(0), (6, 7)).float()
    w, i = cpl_kernels.route_topk(logits, 3)
    assert i.dtype == torch.int64
    assert not i.requires_grad
    torch.testing.assert_close(logits.softmax(1).gather(1, i), w, rtol=1e-6, atol=0)  # a few ulp: another exp
    assert torch.equal(i, logits.argsort(dim=1, descending=True)[:, :3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_index(dtype: torch.dtype) -> None:
    rows = [
        [1.0, 2.0, 2.0, 0.0, 2.0],
        [3.0] * 5,
        [0.0, -0.0, 0.0, -0.0, 1.0],
        [float("-inf"), 0.0, 0.0, 0.0, 0.0],
    ]
    _, indices = cpl_kernels.route_topk(torch.tensor(rows, dtype=dtype), 3)
    assert indices.tolist() == [[1, 2, 4], [0, 1, 2], [4, 0, 1], [1, 2, 3]]
    many = torch.zeros(2, 1000, dtype=dtype)  # an unstable sort shows at sizes like this
    assert torch.equal(cpl_kernels.route_topk(many, 1000)[1], torch.arange(1000).expand(2, -1))


def test_order_is_that_of_the_logits_also_where_the_softmax_rounds_to_zero() -> None:
    w, indices = cpl_kernels.route_topk(torch.tensor([[0.0, 1e4, -1e4, 10.0]]), 4)
    assert indices.tolist() == [[1, 3, 0, 2]]
    assert w.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_unchosen_logits_get_a_gradient_only_without_renormalisation() -> None:
    for normalize, reached in (("none", True), ("topk", False)):
        logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
        cpl_kernels.route_topk(logits, 2, normalize)[0][:, 0].sum().backward()
        assert (logits.grad[0, 2] != 0) == reached


def test_renormalising_one_weight_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_warned", False)
    with pytest.warns(UserWarning, match="router gets no gradient"):
        cpl_kernels.route_topk(torch.randn(2, 5), 1, "topk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpl_kernels.route_topk(torch.randn(2, 5), 1, "topk")
        cpl_kernels.route_topk(torch.randn(2, 5), 2, "topk")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_without_a_softmax_is_named(value: float) -> None:
    logits = torch.randn(4, 5)
    logits[2, 3] = value
    with pytest.raises(cpl_kernels.NonFiniteError, match=rf"logits has no softmax in row 2: .*{value}"):
        cpl_kernels.route_topk(logits, 1)
    logits[2] = float("-inf")
    with pytest.raises(cpl_kernels.NonFiniteError, match="row 2"):
        cpl_kernels.route_topk(logits, 1)


def test_a_row_without_a_softmax_gives_nan_and_valid_indices_where_nobody_looks() -> None:
    """What CUDA does: the backend itself does not check."""
    logits = torch.randn(2, 5)
    logits[0, 3] = float("nan")
    w, indices = reference.forward(logits, 2, False)
    assert w[0].isnan().all()
    assert not w[1].isnan().any()
    assert ((indices >= 0) & (indices < 5)).all()
