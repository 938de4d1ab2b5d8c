"""Which prompts were used: the mask, and what the others' gradients are."""

from __future__ import annotations

import pytest
import torch

import cpl_kernels
from cpl_kernels import core

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("size", [None, (6, 3)])
def test_used_prompts_and_no_others_have_a_gradient(backend: str, size: tuple[int, int] | None) -> None:
    prompts = torch.rand(5, 2, 4, 4, requires_grad=True)
    indices = torch.tensor([[3, 1], [1, 1]])
    y, used = cpl_kernels.aggregate_prompts(
        torch.rand(2, 2), indices, prompts, size, return_used=True, backend=backend
    )
    assert used.tolist() == [False, True, False, True, False]
    (gradient,) = torch.autograd.grad(y, prompts, torch.rand_like(y) + 1)
    assert torch.equal((gradient != 0).flatten(1).any(1), used)
    assert not gradient[~used].any()  # -0.0 would do, NaN would not


def test_in_one_call_and_compiled() -> None:
    logits, prompts = torch.tensor([[0.0, 3.0, 1.0]]), torch.rand(3, 1, 2, 2)
    y, used = cpl_kernels.sparse_prompt(logits, prompts, 2, return_used=True)
    assert used.tolist() == [False, True, True]
    assert torch.equal(y, cpl_kernels.sparse_prompt(logits, prompts, 2))
    compiled = torch.compile(
        lambda a, b: cpl_kernels.sparse_prompt(a, b, 2, return_used=True), fullgraph=True, backend="aot_eager"
    )
    assert all(map(torch.equal, compiled(logits, prompts), (y, used)))


def test_no_images_use_nothing() -> None:
    _, used = cpl_kernels.aggregate_prompts(
        torch.zeros(0, 1), torch.zeros(0, 1).long(), torch.rand(3, 1, 2, 2), return_used=True
    )
    assert used.tolist() == [False] * 3
