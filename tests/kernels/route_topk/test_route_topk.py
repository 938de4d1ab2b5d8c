"""route_topk against softmax and torch.topk, and where torch.topk promises nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels.route_topk import op, reference
from tests.kernels import matrix
from tests.kernels.matrix import Case


def weights(logits: Tensor, k: int, normalize: str, backend: str | None = None) -> Tensor:
    return cpl_kernels.route_topk(logits, k, normalize, backend=backend)[0]


def naive(logits: Tensor, k: int, normalize: str) -> Tensor:
    """torch's own chain; its topk is right where there are no ties."""
    p = torch.softmax(logits, dim=1).topk(k, dim=1).values
    return p / p.sum(dim=1, keepdim=True) if normalize == "topk" else p


def case(name: str, shape: tuple[int, int], k: int, normalize: str = "none", scale: float = 1.0) -> Case:
    return Case(
        name,
        lambda rng: (distinct(rng, shape) * scale,),
        partial(weights, k=k, normalize=normalize),
        partial(naive, k=k, normalize=normalize),
        terms=4,
    )


def distinct(rng: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Logits that stay distinct when rounded to bf16: the naive formula has no rule for ties."""
    batch, prompts = shape
    rows = [torch.randperm(prompts, generator=rng).double() for _ in range(batch)]
    return torch.stack(rows) * (4 / prompts) - 2 if rows else torch.zeros(shape, dtype=torch.float64)


CASES = [
    case("model", (4, 5), 1),
    case("two of five", (3, 5), 2),
    case("renormalised", (3, 5), 2, "topk"),
    case("all, PromptIR", (2, 5), 5),
    case("one prompt", (3, 1), 1),
    case("beyond a warp", (2, 37), 33, "topk"),
    case("sharp", (3, 6), 3, scale=8.0),
    case("no images", (0, 5), 2),
]
SMALL = CASES[1:3]


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    matrix.check_parity(case, dtype)


@matrix.of(SMALL)
@pytest.mark.parametrize("layout", matrix.LAYOUTS)
@pytest.mark.parametrize("dy_layout", matrix.LAYOUTS)
def test_strides(case: Case, layout: str, dy_layout: str) -> None:
    matrix.check_parity(case, torch.float32, layout, dy_layout)


@matrix.of(SMALL)
def test_matrix(case: Case) -> None:
    matrix.check_gradients(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_compiles(case)
    matrix.check_no_second_derivative(case)


@pytest.mark.parametrize("renormalize", [False, True])
def test_opcheck(renormalize: bool) -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.cpl_kernels.route_topk.default, (logits, 2, renormalize, "reference"))


def test_definition_has_second_derivatives() -> None:
    logits = CASES[1].inputs(torch.float64)[0].requires_grad_()
    for renormalize in (False, True):
        assert torch.autograd.gradgradcheck(
            lambda x, r=renormalize: reference.route_topk(x, 2, r)[0], (logits,)
        )


def test_indices_point_at_the_weights() -> None:
    logits = distinct(torch.Generator().manual_seed(0), (6, 7)).float()
    w, i = cpl_kernels.route_topk(logits, 3)
    assert i.dtype == torch.int64
    assert not i.requires_grad
    assert torch.equal(logits.softmax(1).gather(1, i), w)
    assert torch.equal(i, logits.argsort(dim=1, descending=True)[:, :3])


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
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


@pytest.mark.parametrize("normalize", ["none", "topk"])
def test_extreme_logits_stay_finite(normalize: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, 0.0], [-1e4, -1e4, -1e4, -1e4]], requires_grad=True)
    w, _ = cpl_kernels.route_topk(logits, 2, normalize)
    expected = [[0.5, 0.5], [0.25, 0.25] if normalize == "none" else [0.5, 0.5]]
    torch.testing.assert_close(w, torch.tensor(expected))
    w.square().sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_unchosen_logits_get_a_gradient_only_without_renormalisation() -> None:
    for normalize, reached in (("none", True), ("topk", False)):
        logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
        cpl_kernels.route_topk(logits, 2, normalize)[0][:, 0].sum().backward()
        assert (logits.grad[0, 2] != 0) == reached


def test_autocast_routes_in_float32() -> None:
    logits = torch.randn(3, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w, _ = cpl_kernels.route_topk(logits, 2)
        assert cpl_kernels.route_topk(logits.double(), 2)[0].dtype == torch.float64
    assert torch.equal(w, cpl_kernels.route_topk(logits.float(), 2)[0])


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


L = torch.zeros(2, 5)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rank": (lambda: cpl_kernels.route_topk(L[0], 1), ValueError, r"\[B, N\].*\(5,\)"),
    "integer logits": (
        lambda: cpl_kernels.route_topk(L.long(), 1),
        TypeError,
        "logits must be float32.*int64",
    ),
    "not a tensor": (lambda: cpl_kernels.route_topk([[1.0]], 1), TypeError, "Tensor, got list"),
    "k = 0": (lambda: cpl_kernels.route_topk(L, 0), ValueError, "k must be from 1 to N = 5.*got 0"),
    "k > N": (lambda: cpl_kernels.route_topk(L, 6), ValueError, "k must be from 1 to N = 5.*got 6"),
    "k float": (lambda: cpl_kernels.route_topk(L, 1.0), TypeError, "k must be an int, got float"),
    "k bool": (lambda: cpl_kernels.route_topk(L, True), TypeError, "k must be an int, got bool"),
    "no prompts": (lambda: cpl_kernels.route_topk(L[:, :0], 1), ValueError, "N = 0"),
    "normalize": (lambda: cpl_kernels.route_topk(L, 1, "sum"), ValueError, "'none', 'topk', got 'sum'"),
    "backend": (lambda: cpl_kernels.route_topk(L, 1, backend="fast"), ValueError, "'reference'.*'fast'"),
    "cannot serve": (
        lambda: cpl_kernels.route_topk(L, 1, backend="cuda"),
        RuntimeError,
        "route_topk.*'cuda'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
