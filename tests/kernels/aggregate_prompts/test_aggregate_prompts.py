"""aggregate_prompts against a dense mixture resized by torch, and the resize against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.aggregate_prompts import reference
from tests.kernels import matrix
from tests.kernels.matrix import Case, randn

Size = tuple[int, int] | int | None


def naive(weights: Tensor, prompts: Tensor, indices: Tensor, size: Size) -> Tensor:
    """The dense form of PromptIR: every prompt resized, then summed with its weight (mostly 0)."""
    dense = torch.zeros(weights.shape[0], prompts.shape[0], dtype=weights.dtype)
    for i in range(weights.shape[1]):
        dense = dense + F.one_hot(indices[:, i], prompts.shape[0]) * weights[:, i : i + 1]
    resized = prompts
    if size is not None:
        resized = F.interpolate(prompts, size, mode="bilinear", align_corners=False)
    return torch.einsum("bn,nchw->bchw", dense, resized)


def case(name: str, indices: list[list[int]], prompts: tuple[int, ...], size: Size = None) -> Case:
    chosen = torch.tensor(indices, dtype=torch.int64).reshape(len(indices), len(indices[0]) if indices else 2)
    return Case(
        name,
        lambda rng: (randn(rng, *chosen.shape), randn(rng, *prompts)),
        lambda w, p, **kwargs: cpl_kernels.aggregate_prompts(w, chosen, p, size, **kwargs),
        lambda w, p: naive(w, p, chosen, size),
        terms=4,
    )


CASES = [
    case("one of five, no resize", [[3], [0], [3]], (5, 4, 6, 6)),
    case("two, enlarged", [[3, 1], [0, 4]], (5, 2, 2, 3), (4, 5)),
    case("all five", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], (5, 2, 4, 4), 8),
    case("reduced, thin", [[1, 0], [0, 1]], (2, 3, 8, 8), (1, 3)),
    case("one row only", [[1, 0]], (2, 3, 5, 7), (11, 7)),
    case("twice in a row", [[2, 2, 0], [1, 1, 1]], (3, 2, 4, 4), 5),
    case("one pixel", [[0], [1]], (2, 3, 1, 1), (3, 2)),
    case("beyond a tile", [[1], [0]], (2, 2, 16, 16), (33, 65)),
    case("no images", [], (5, 2, 4, 4), (6, 6)),
]
SMALL = [CASES[1], CASES[5]]


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
    matrix.check_subsets_agree(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_compiles(case)
    matrix.check_no_second_derivative(case)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_opcheck(wanted: tuple[bool, bool]) -> None:
    weights, prompts = (
        torch.randn(3, 2, requires_grad=wanted[0]),
        torch.randn(5, 2, 3, 3, requires_grad=wanted[1]),
    )
    indices = torch.tensor([[0, 1], [4, 4], [2, 0]])
    args = (weights, indices, prompts, 4, 5, "reference")
    torch.library.opcheck(torch.ops.cpl_kernels.aggregate_prompts.default, args)


@pytest.mark.parametrize(
    ("size", "source"), [(1, 1), (5, 1), (1, 5), (7, 4), (4, 7), (8, 4), (64, 16), (13, 13)]
)
def test_resize_matrix_is_torchs_interpolate(size: int, source: int) -> None:
    """Column j of the matrix is what the j-th unit vector becomes; and each row sums to 1."""
    matrix_ = reference.resize_matrix(size, source, torch.empty(0, dtype=torch.float64))
    unit = torch.eye(source, dtype=torch.float64)[None, None]
    expected = F.interpolate(unit, (size, source), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(matrix_, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(matrix_.sum(1), torch.ones(size, dtype=torch.float64))


def test_resize_by_hand() -> None:
    """Twice the size: source centres at -0.25, 0.25, 0.75, ...; the edge repeats."""
    prompts = torch.tensor([0.0, 4.0, 8.0]).expand(1, 1, 1, 3)
    y = cpl_kernels.aggregate_prompts(torch.ones(1, 1), torch.zeros(1, 1).long(), prompts, (1, 6))
    assert y.flatten().tolist() == [0.0, 1.0, 3.0, 5.0, 7.0, 8.0]


def test_negative_weights_and_zero_k() -> None:
    prompts = torch.ones(2, 1, 2, 2)
    y = cpl_kernels.aggregate_prompts(torch.tensor([[-2.0]]), torch.tensor([[1]]), prompts)
    assert torch.equal(y, torch.full((1, 1, 2, 2), -2.0))
    none = cpl_kernels.aggregate_prompts(torch.zeros(3, 0), torch.zeros(3, 0).long(), prompts)
    assert torch.equal(none, torch.zeros(3, 1, 2, 2))


@pytest.mark.parametrize(
    ("weights", "prompts"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float64)],
    ids=str,
)
def test_mixed_dtypes(weights: torch.dtype, prompts: torch.dtype) -> None:
    w, p = (
        torch.randn(2, 2).to(weights).requires_grad_(),
        torch.randn(5, 2, 3, 3).to(prompts).requires_grad_(),
    )
    y = cpl_kernels.aggregate_prompts(w, torch.tensor([[0, 3], [1, 0]]), p, 4)
    y.sum().backward()
    assert (y.dtype, w.grad.dtype, p.grad.dtype) == (prompts, weights, prompts)
    expected = naive(w.double(), p.double(), torch.tensor([[0, 3], [1, 0]]), (4, 4))
    torch.testing.assert_close(y.double(), expected, rtol=0.01, atol=0.01)


def test_autocast_changes_nothing() -> None:
    matrix.check_under_autocast(CASES[1], expected=torch.float32)


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_index_out_of_range_is_named(bad: int) -> None:
    indices = torch.tensor([[0, 1], [bad, 2]])
    with pytest.raises(ValueError, match=f"indices must be from 0 to N-1 = 4, got {bad}"):
        cpl_kernels.aggregate_prompts(torch.ones(2, 2), indices, torch.ones(5, 1, 2, 2))


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_index_out_of_range_gives_nan_where_nobody_looks(bad: int) -> None:
    """What CUDA does: the backend itself does not check, and reads nothing out of bounds."""
    weights, indices, prompts = torch.ones(2, 2), torch.tensor([[0, 1], [bad, 2]]), torch.ones(5, 1, 2, 2)
    y = reference.forward(weights, indices, prompts, 3, 3)
    assert not y[0].isnan().any()
    assert y[1].isnan().all()
    dweights, _ = reference.backward(torch.ones_like(y), weights, indices, prompts, True, True)
    assert dweights.isnan().tolist() == [[False, False], [True, False]]


def test_nan_prompt_stays_where_it_is_used() -> None:
    prompts = torch.ones(3, 1, 2, 2)
    prompts[1] = math.nan
    y = cpl_kernels.aggregate_prompts(torch.ones(2, 1), torch.tensor([[0], [1]]), prompts)
    assert not y[0].isnan().any()
    assert y[1].isnan().all()


W, CHOSEN, P = torch.ones(2, 1), torch.zeros(2, 1).long(), torch.ones(5, 3, 4, 4)
aggregate = cpl_kernels.aggregate_prompts
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "weights rank": (lambda: aggregate(W[0], CHOSEN, P), ValueError, r"weights must be \[B, k\].*\(1,\)"),
    "weights dtype": (lambda: aggregate(W.int(), CHOSEN, P), TypeError, "weights.*int32"),
    "indices dtype": (
        lambda: aggregate(W, CHOSEN.int(), P),
        TypeError,
        "indices must be int64, got torch.int32",
    ),
    "indices shape": (lambda: aggregate(W, CHOSEN[:1], P), ValueError, r"indices.*\(2, 1\).*\(1, 1\)"),
    "indices list": (lambda: aggregate(W, [[0], [0]], P), TypeError, "indices.*list"),
    "prompts rank": (lambda: aggregate(W, CHOSEN, P[None]), ValueError, r"prompts.*\(1, 5, 3, 4, 4\)"),
    "prompts dtype": (lambda: aggregate(W, CHOSEN, P.long()), TypeError, "prompts.*int64"),
    "no prompts": (lambda: aggregate(W, CHOSEN, P[:0]), ValueError, r"prompts.*\(0, 3, 4, 4\)"),
    "no pixels": (lambda: aggregate(W, CHOSEN, P[..., :0]), ValueError, r"prompts.*\(5, 3, 4, 0\)"),
    "device": (lambda: aggregate(W, CHOSEN, P.to("meta")), ValueError, "prompts is on meta"),
    "size 0": (lambda: aggregate(W, CHOSEN, P, (0, 3)), ValueError, r"size.*\(0, 3\)"),
    "size of 3": (lambda: aggregate(W, CHOSEN, P, (1, 2, 3)), ValueError, r"size.*\(1, 2, 3\)"),
    "size float": (lambda: aggregate(W, CHOSEN, P, (1.5, 2)), ValueError, r"size.*\(1.5, 2\)"),
    "backend": (lambda: aggregate(W, CHOSEN, P, backend="cuda"), RuntimeError, "aggregate_prompts.*'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
