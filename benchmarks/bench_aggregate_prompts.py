"""aggregate_prompts against the ways a sparse mixture of prompts can be written in torch. Run: make bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness
from cpl_kernels.aggregate_prompts import reference

# f(weights, prompts, indices, size) -> [B, C, size, size]
Function = Callable[[Tensor, Tensor, Tensor, int], Tensor]
# (B, N, k, C, S): the three levels of the model, larger batches, more prompts; each as it is and resized to 1.5.
CASES = [
    (8, 5, 1, 64, 64),
    (8, 5, 2, 64, 64),
    (8, 5, 1, 320, 16),
    (32, 5, 1, 128, 32),
    (32, 64, 2, 128, 32),
    (32, 64, 4, 64, 64),
]
CASES_AND_SIZES = [(case, case[4] * scale // 2) for case in CASES for scale in (2, 3)]


def resized(y: Tensor, size: int) -> Tensor:
    if y.shape[-1] == size:
        return y
    return F.interpolate(y, (size, size), mode="bilinear", align_corners=False)


def scattered(weights: Tensor, indices: Tensor, count: int) -> Tensor:
    """The weights of all N prompts, [B, N], zero where not chosen."""
    return weights.new_zeros(weights.shape[0], count).scatter_add(1, indices, weights)


def dense(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    """PromptIR's form: every image has all prompts, times its weights, summed."""
    all_weights = scattered(weights, indices, len(prompts))
    return resized((all_weights[:, :, None, None, None] * prompts[None]).sum(1), size)


def einsum(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    return resized(torch.einsum("bn,nchw->bchw", scattered(weights, indices, len(prompts)), prompts), size)


def mm(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    y = scattered(weights, indices, len(prompts)) @ prompts.flatten(1)
    return resized(y.view(-1, *prompts.shape[1:]), size)


def embedding_bag(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    y = F.embedding_bag(indices, prompts.flatten(1), per_sample_weights=weights, mode="sum")
    return resized(y.view(-1, *prompts.shape[1:]), size)


def select_bmm(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    chosen = prompts.flatten(1).index_select(0, indices.flatten()).view(*indices.shape, -1)
    return resized(torch.bmm(weights[:, None], chosen).view(-1, *prompts.shape[1:]), size)


def definition(weights: Tensor, prompts: Tensor, indices: Tensor, size: int) -> Tensor:
    return reference.aggregate_prompts(weights, indices, prompts, size, size)


IMPLEMENTATIONS: dict[str, Callable[[], Function]] = {
    "ours (native)": lambda: lambda w, p, i, s: cpl_kernels.aggregate_prompts(w, i, p, s, backend="native"),
    "reference eager": lambda: definition,
    "torch.compile of the reference": lambda: torch.compile(definition),
    "dense product and sum": lambda: dense,
    "einsum": lambda: einsum,
    "mm on scattered weights": lambda: mm,
    "embedding_bag": lambda: embedding_bag,
    "index_select and bmm": lambda: select_bmm,
}


def floor_elements(indices: Tensor, prompts: Tensor, size: int, passes: str) -> int:
    """Read each used prompt, write the results; backward: read the gradient and used prompts, write all N."""
    used, count = len(indices.unique()), len(prompts)
    row = prompts[0].numel()
    result = len(indices) * prompts.shape[1] * size * size
    forward = result + used * row
    return forward if passes == "forward" else 2 * forward + count * row


@pytest.mark.parametrize("passes", harness.PASSES)
@pytest.mark.parametrize(
    ("case", "size"),
    CASES_AND_SIZES,
    ids=[f"{harness.shape_id(case)}-to-{size}" for case, size in CASES_AND_SIZES],
)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_aggregate_prompts(
    benchmark: Any,
    copy_bandwidth: Callable[[int], float],
    name: str,
    case: Sequence[int],
    size: int,
    passes: str,
) -> None:
    torch.manual_seed(0)
    batch, count, k, channels, side = case
    prompts = torch.rand(count, channels, side, side, requires_grad=True)
    weights, indices = torch.randn(batch, count).softmax(1).topk(k, dim=1)
    weights.requires_grad_()
    function = IMPLEMENTATIONS[name]()
    leaves, dy = (prompts, weights), torch.randn(batch, channels, size, size)
    runs = harness.passes_of(lambda p, w: function(w, p, indices, size), leaves, dy)
    gold = harness.passes_of(lambda p, w: definition(w, p, indices, size), leaves, dy)
    harness.assert_same(runs, gold, atol=1e-4, sum_atol=5e-2)  # dweights sums up to a million terms
    moved = prompts.element_size() * floor_elements(indices, prompts, size, passes)
    harness.row(
        benchmark, copy_bandwidth, op="aggregate_prompts", shape=(*case, size), passes=passes, name=name,
        run=runs[passes], floor_bytes=moved, working_set=moved,
    )  # fmt: skip
