"""sparse_prompt against PromptIR's dense formula with all but the top k weights cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.sparse_prompt import reference
from tests.kernels import matrix
from tests.kernels.matrix import Case, randn


def naive(logits: Tensor, prompts: Tensor, k: int, size: tuple[int, int] | None, normalize: str) -> Tensor:
    p = logits.softmax(1)
    kth = p.topk(k, dim=1).values[:, -1:]
    p = torch.where(p >= kth, p, 0)
    if normalize == "topk":
        p = p / p.sum(1, keepdim=True)
    y = torch.einsum("bn,nchw->bchw", p, prompts)
    return y if size is None else F.interpolate(y, size, mode="bilinear", align_corners=False)


def case(
    name: str,
    batch: int,
    prompts: tuple[int, ...],
    k: int,
    size: tuple[int, int] | None = None,
    normalize: str = "none",
) -> Case:
    return Case(
        name,
        lambda rng: (randn(rng, batch, prompts[0]), randn(rng, *prompts)),
        lambda x, p, **kwargs: cpl_kernels.sparse_prompt(x, p, k, size, normalize, **kwargs),
        lambda x, p: naive(x, p, k, size, normalize),
        terms=8,
    )


CASES = [
    case("model", 2, (5, 4, 6, 6), 1),
    case("two, resized", 3, (5, 2, 2, 2), 2, (3, 4)),
    case("renormalised", 2, (6, 1, 2, 3), 3, (3, 4), "topk"),
    case("dense, PromptIR", 2, (5, 2, 4, 4), 5, (8, 8)),
    case("no images", 0, (5, 2, 4, 4), 1, (8, 8)),
]


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    matrix.check_parity(case, dtype)


@pytest.mark.parametrize("layout", matrix.LAYOUTS)
def test_strides(layout: str) -> None:
    matrix.check_parity(CASES[1], torch.float32, layout, layout)


@matrix.of(CASES[1:3])
def test_matrix(case: Case) -> None:
    matrix.check_gradients(case)
    matrix.check_subsets_agree(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_compiles(case)
    matrix.check_no_second_derivative(case)


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_is_the_two_calls(dtype: torch.dtype) -> None:
    logits, prompts = torch.randn(3, 5).to(dtype), torch.randn(5, 2, 4, 4).to(dtype)
    weights, indices = cpl_kernels.route_topk(logits, 2)
    expected = cpl_kernels.aggregate_prompts(weights, indices, prompts, 6)
    assert torch.equal(cpl_kernels.sparse_prompt(logits, prompts, 2, 6), expected)
    assert torch.equal(reference.sparse_prompt(logits, prompts, 2, 6, 6, False), expected)


def test_ties_go_to_the_lowest_index() -> None:
    prompts = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    y = cpl_kernels.sparse_prompt(torch.zeros(1, 5), prompts, 2)
    assert torch.equal(y, torch.full((1, 1, 2, 2), 0.2))  # (0 + 1) / 5


def test_a_named_backend_reaches_both_calls() -> None:
    logits, prompts = torch.zeros(1, 5), torch.zeros(5, 1, 2, 2)
    with pytest.raises(RuntimeError, match="'cuda' cannot serve"):
        cpl_kernels.sparse_prompt(logits, prompts, 1, backend="cuda")
    with (
        cpl_kernels.use_backend(sparse_prompt="cuda"),
        pytest.raises(RuntimeError, match="'cuda' cannot serve"),
    ):
        cpl_kernels.sparse_prompt(logits, prompts, 1)
    with (
        cpl_kernels.use_backend(aggregate_prompts="cuda"),
        pytest.raises(RuntimeError, match="aggregate_prompts"),
    ):
        cpl_kernels.sparse_prompt(logits, prompts, 1)


def test_autocast_routes_in_float32() -> None:
    logits, prompts = torch.randn(3, 5).bfloat16(), torch.randn(5, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = cpl_kernels.sparse_prompt(logits, prompts, 2, 6)
    assert torch.equal(y, cpl_kernels.sparse_prompt(logits.float(), prompts, 2, 6))


L, P = torch.zeros(2, 5), torch.ones(5, 3, 4, 4)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "number of prompts": (
        lambda: cpl_kernels.sparse_prompt(L, P[:4], 1),
        ValueError,
        "N = 5 prompts.*holds 4",
    ),
    "logits rank": (lambda: cpl_kernels.sparse_prompt(L[0], P, 1), ValueError, r"logits must be \[B, N\]"),
    "prompts rank": (lambda: cpl_kernels.sparse_prompt(L, P[0], 1), ValueError, r"prompts.*\(3, 4, 4\)"),
    "logits list": (lambda: cpl_kernels.sparse_prompt([0.0], P, 1), TypeError, "logits.*list"),
    "k": (lambda: cpl_kernels.sparse_prompt(L, P, 6), ValueError, "k must be from 1 to N = 5"),
    "normalize": (lambda: cpl_kernels.sparse_prompt(L, P, 1, None, "l1"), ValueError, "got 'l1'"),
    "size": (lambda: cpl_kernels.sparse_prompt(L, P, 1, (0, 1)), ValueError, r"size.*\(0, 1\)"),
    "NaN": (lambda: cpl_kernels.sparse_prompt(L / 0, P, 1), ValueError, "no softmax in row 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
