"""What is special to aggregate_prompts; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.aggregate_prompts import reference
from tests.kernels.aggregate_prompts.spec import SPEC, case, cycled, naive
from tests.kernels.harness import assert_same_bits
from tests.kernels.targets import Target, compare_results, gradients_for


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
    expected = naive(w.double(), torch.tensor([[0, 3], [1, 0]]), p.double(), (4, 4))
    torch.testing.assert_close(y.double(), expected, rtol=0.01, atol=0.01)


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


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_at_any_number_of_threads_without_a_resize(dtype: torch.dtype) -> None:
    """The matrix tries its large case, which is resized: there a thread takes channels, here runs of all elements."""
    flat = case("flat", "several runs for each of three threads", cycled(3, 2, 5), (5, 9, 64, 65))
    inputs = flat.inputs(dtype)
    dys = gradients_for(SPEC, flat, inputs, dtype)
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(Target("native", "native").run(SPEC, flat, inputs, SPEC.wanted(inputs), dys))
    for other in runs[1:]:
        assert_same_bits(other, runs[0])


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.usefixtures("no_large_cache")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "prompts", "size"),
    [
        (12, (2, 16, 33, 64), (66, 192)),
        (12, (2, 16, 64, 64), (96, 129)),
        (12, (2, 16, 64, 33), (64, 193)),
        (2, (9, 64, 64, 64), (33, 32)),
    ],
    ids=["whole lines", "no lines", "rows as they are", "gradients"],
)
def test_what_is_streamed(
    batch: int, prompts: tuple[int, int, int, int], size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Results and gradients of over 4 MiB go past the cache: rows of whole lines one by one, others by strips."""
    big = case("streamed", "large", cycled(batch, 1, 2), prompts, size)
    inputs = big.inputs(dtype)
    dys = gradients_for(SPEC, big, inputs, dtype)
    compare_results(SPEC, big, Target("native", "native"), inputs, dys, dtype)
