"""What is special to sparse_prompt; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch

import cpl_kernels
from cpl_kernels.sparse_prompt import reference
from tests.kernels.harness import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_two_calls(dtype: torch.dtype) -> None:
    logits, prompts = torch.randn(3, 5).to(dtype), torch.randn(5, 2, 4, 4).to(dtype)
    weights, indices = cpl_kernels.route_topk(logits, 2, backend="reference")
    expected = cpl_kernels.aggregate_prompts(weights, indices, prompts, 6, backend="reference")
    assert torch.equal(cpl_kernels.sparse_prompt(logits, prompts, 2, 6, backend="reference"), expected)
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
