"""aggregate_prompts against the ways to write a sparse mixture in torch. Run: make bench-aggregate_prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import copies, harness, rows
from cpl_kernels.aggregate_prompts import reference

# (B, N, k, C, S): the three levels of the model, larger batches, more prompts; each as it is and resized to 1.5.
CASES = [
    (8, 5, 1, 64, 64),
    (8, 5, 2, 64, 64),
    (8, 5, 1, 320, 16),
    (32, 5, 1, 128, 32),
    (32, 64, 2, 128, 32),
    (32, 64, 4, 64, 64),
]


def resized(y: Tensor, size: int) -> Tensor:
    if y.shape[-1] == size:
        return y
    return F.interpolate(y, (size, size), mode="bilinear", align_corners=False)


def scattered(weights: Tensor, indices: Tensor, count: int) -> Tensor:
    """The weights of all N prompts, [B, N], zero where not chosen."""
    return weights.new_zeros(weights.shape[0], count).scatter_add(1, indices, weights)


def dense(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    """PromptIR's form: every image has all prompts, times its weights, summed."""
    all_weights = scattered(weights, indices, len(prompts))
    return resized((all_weights[:, :, None, None, None] * prompts[None]).sum(1), size)


def einsum(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    return resized(torch.einsum("bn,nchw->bchw", scattered(weights, indices, len(prompts)), prompts), size)


def mm(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    y = scattered(weights, indices, len(prompts)) @ prompts.flatten(1)
    return resized(y.view(-1, *prompts.shape[1:]), size)


def embedding_bag(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    y = F.embedding_bag(indices, prompts.flatten(1), per_sample_weights=weights, mode="sum")
    return resized(y.view(-1, *prompts.shape[1:]), size)


def select_bmm(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    chosen = prompts.flatten(1).index_select(0, indices.flatten()).view(*indices.shape, -1)
    return resized(torch.bmm(weights[:, None], chosen).view(-1, *prompts.shape[1:]), size)


def definition(prompts: Tensor, weights: Tensor, indices: Tensor, size: int) -> Tensor:
    return reference.aggregate_prompts(weights, indices, prompts, size, size)


def ours(backend: str) -> harness.Function:
    return lambda p, w, i, size: cpl_kernels.aggregate_prompts(w, i, p, size, backend=backend)


class Copies(torch.autograd.Function):
    """Moves what must move: the used prompts (read in either pass), y and dy, and a gradient for all prompts."""

    @staticmethod
    def forward(ctx: Any, prompts: Tensor, weights: Tensor, used: int, size: int) -> Tensor:
        ctx.save_for_backward(prompts, weights)
        ctx.used = used
        y = prompts.new_empty(len(weights), prompts.shape[1], size, size)
        copies.move([prompts[:used]], y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        prompts, weights = ctx.saved_tensors
        dprompts = torch.empty_like(prompts)
        copies.move([dy, prompts[: ctx.used]], dprompts)
        return dprompts, torch.zeros_like(weights), None, None


def problem(batch: int, count: int, k: int, channels: int, side: int, size: int) -> harness.Problem:
    rng = torch.Generator().manual_seed(0)
    values, indices = torch.randn(batch, count, generator=rng).softmax(1).topk(k, dim=1)

    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        prompts = torch.rand(count, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        weights = values.to(device, dtype).requires_grad_()
        return [prompts, weights], torch.randn(batch, channels, size, size, device=device, dtype=dtype)

    row, result, used = channels * side * side, batch * channels * size * size, len(indices.unique())
    # Read the used prompts and write the result; the backward reads dy and them, and writes a gradient for all N.
    forward = result + used * row
    return harness.Problem(
        (batch, count, k, channels, side, size),
        make,
        {"forward": forward, "forward+backward": 2 * forward + count * row},
        forward,
        fixed=lambda device: (indices.to(device), size),
        yardsticks={
            harness.COPIES: lambda prompts, weights, indices, size: Copies.apply(prompts, weights, used, size)
        },
    )


PROBLEMS = tuple(problem(*case, case[4] * scale // 2) for case in CASES for scale in (2, 3))

BENCH = harness.Bench(
    op="aggregate_prompts",
    problems={"cpu": PROBLEMS, "cuda": PROBLEMS},
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "torch.compile of the reference": harness.compiled(definition),
        "dense product and sum": lambda: dense,
        "einsum": lambda: einsum,
        "mm on scattered weights": lambda: mm,
        "embedding_bag": lambda: embedding_bag,
        "index_select and bmm": lambda: select_bmm,
    },
    definition=definition,
    tolerance=1e-4,
    sum_tolerance=5e-2,  # dweights sum up to 589824 terms
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_aggregate_prompts(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
