"""What the routing loss measures, and what its gradient does to a router."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cpl.losses import RoutingLoss

TASKS = torch.tensor([0, 0, 1, 2])


def logits_for(prompts: list[int], scale: float) -> Tensor:
    return scale * torch.nn.functional.one_hot(torch.tensor(prompts), 3).double()


def test_cross_entropy_is_by_the_task_s_number() -> None:
    loss = RoutingLoss(task=2.0)
    right = {3: logits_for([0, 0, 1, 2], 50.0), 1: torch.zeros(4, 3)}
    assert loss(right, TASKS).item() == pytest.approx((0 + 2 * math.log(3)) / 2)  # the mean of the levels
    one_wrong = {3: logits_for([0, 0, 1, 0], 50.0)}
    assert loss(one_wrong, TASKS).item() == pytest.approx(2 * 50 / 4)


def test_balance_is_one_where_prompts_are_used_alike_and_n_where_one_is() -> None:
    loss = RoutingLoss(balance=1.0)
    assert loss({1: logits_for([0, 1, 2], 50.0)}, TASKS[:3]).item() == pytest.approx(1)
    assert loss({1: logits_for([1, 1, 1], 50.0)}, TASKS[:3]).item() == pytest.approx(3)


def test_information_is_of_image_and_prompt() -> None:
    loss = RoutingLoss(information=1.0)
    assert loss({1: logits_for([0, 1, 2], 50.0)}, TASKS[:3]).item() == pytest.approx(-math.log(3))
    assert loss({1: logits_for([1, 1, 1], 50.0)}, TASKS[:3]).item() == pytest.approx(0, abs=1e-6)
    assert loss({1: torch.zeros(3, 3)}, TASKS[:3]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", ["task", "balance", "information"])
def test_gradients(term: str) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    loss = RoutingLoss(**{term: 0.5})
    assert torch.autograd.gradcheck(
        lambda x: loss({1: x}, TASKS), (logits,), eps=1e-3, atol=1e-3
    )  # it computes in float32


def test_information_teaches_a_router_to_choose() -> None:
    """From nearly flat logits, by nothing but itself: certain choices, all prompts in use."""
    rng = torch.Generator().manual_seed(1)
    logits = (0.01 * torch.randn(64, 4, generator=rng)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    loss = RoutingLoss(information=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss({1: logits}, torch.zeros(64, dtype=torch.int64)).backward()
        optimizer.step()
    p = logits.softmax(1)
    assert p.max(1).values.min() > 0.95
    assert p.mean(0).min() > 0.1


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one of task, balance and information"):
        RoutingLoss()
    with pytest.raises(ValueError, match="balance"):
        RoutingLoss(balance=-1)
    with pytest.raises(ValueError, match="no routers' logits"):
        RoutingLoss(task=1)({}, TASKS)
    with pytest.raises(ValueError, match=r"level 2 must be \[B, N\] for 4 tasks, got \(3, 3\)"):
        RoutingLoss(balance=1)({2: torch.zeros(3, 3)}, TASKS)
    with pytest.raises(ValueError, match="task 2 has no prompt of its own among 2"):
        RoutingLoss(task=1)({2: torch.zeros(4, 2)}, TASKS)
