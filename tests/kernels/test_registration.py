"""The direct way into an op and the way by the dispatcher are one op."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels import registration


def results() -> list[Tensor]:
    """Output, gradients and draws of the ops that have a direct way."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, requires_grad=True)
    prompts = torch.randn(5, 2, 4, 4, requires_grad=True)
    weights, indices = cpl_kernels.route_topk(logits, 2)
    y = cpl_kernels.aggregate_prompts(weights, indices, prompts, 6)
    gradients = torch.autograd.grad(y.square().sum(), (logits, prompts))
    draws = cpl_kernels.route_negatives(logits, 2, 3, seed=torch.tensor(7))
    return [weights.detach(), indices, y.detach(), *gradients, *draws]


def test_both_ways_give_the_same_bits() -> None:
    with mock.patch.object(registration, "_watched", return_value=True):
        dispatched = results()
    with mock.patch.object(registration, "_watched", return_value=False):
        direct = results()
    assert len(direct) == len(dispatched)
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


def test_a_profile_names_the_ops() -> None:
    logits = torch.randn(3, 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cpl_kernels.route_topk(logits, 2)
    assert "cpl_kernels::route_topk" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("inside", ["vmap", "functional grad"])
def test_transforms_never_see_the_direct_way(inside: str) -> None:
    """It would hand their wrappers to a kernel. By the dispatcher they work, or torch says what is missing."""
    logits = torch.randn(4, 3, 5)
    seen: list[bool] = []
    watched = registration._watched

    def spy(args: tuple[object, ...]) -> bool:
        seen.append(watched(args))
        return seen[-1]

    def function(x: Tensor) -> Tensor:
        return cpl_kernels.route_topk(x, 2)[0].sum()

    with mock.patch.object(registration, "_watched", spy), contextlib.suppress(RuntimeError):
        torch.func.vmap(function)(logits) if inside == "vmap" else torch.func.grad(function)(logits[0])
    assert seen[0]
