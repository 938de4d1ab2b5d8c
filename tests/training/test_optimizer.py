"""PromptAdamW: AdamW to the bit where prompts are used, nothing at all where they are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cpl.training.optimizer import PromptAdamW, pools_of

OPTIONS = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.1, "fused": True}  # fused: as training has it


def pool() -> nn.Parameter:
    return nn.Parameter(torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


def train(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, used: list[list[bool]]) -> list[Tensor]:
    """The pool after each step of gradients that are zero but for the prompts in use."""
    rng, seen = torch.Generator().manual_seed(1), []
    for step in used:
        mask = torch.tensor(step).view(1, -1, 1, 1, 1)
        parameter.grad = torch.rand(parameter.shape, generator=rng) * mask
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


def test_all_used_is_adamw() -> None:
    a, b = pool(), pool()
    used = [[True] * 3] * 4
    ours = train(a, PromptAdamW([a], pools=[a], **OPTIONS), used)
    torchs = train(b, torch.optim.AdamW([b], **OPTIONS), used)
    assert all(map(torch.equal, ours, torchs))


def test_unused_prompts_keep_value_moments_and_decay() -> None:
    parameter = pool()
    optimizer = PromptAdamW([parameter], pools=[parameter], **OPTIONS)
    start = parameter.detach().clone()
    first, second = train(parameter, optimizer, [[True, True, False], [True, False, False]])
    assert torch.equal(first[:, 2], start[:, 2])  # never used: no decay
    assert torch.equal(second[:, 1:], first[:, 1:])  # used before: no momentum either
    assert not torch.equal(second[:, 0], first[:, 0])
    state = optimizer.state[parameter]
    assert not state["exp_avg"][:, 2].any()
    assert not state["exp_avg_sq"][:, 2].any()
    before = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    train(parameter, optimizer, [[False, False, True]])
    for name, old in before.items():
        assert torch.equal(state[name][:, :2], old[:, :2])
        assert state[name][:, 2].all()


def test_other_parameters_and_no_pools_are_adamw() -> None:
    a, b, other = pool(), pool(), nn.Parameter(torch.ones(2))
    used = [[True, False, False]] * 3
    optimizer = PromptAdamW([a, other], **OPTIONS)
    other.grad = torch.zeros(2)
    ours = train(a, optimizer, used)
    assert all(map(torch.equal, ours, train(b, torch.optim.AdamW([b], **OPTIONS), used)))
    assert (other < 1).all()  # its zero gradient is no reason not to decay


def test_state_goes_through_a_checkpoint() -> None:
    a, b = pool(), pool()
    first = PromptAdamW([a], pools=[a], **OPTIONS)
    train(a, first, [[True, False, True]])
    b.data.copy_(a.data)
    second = PromptAdamW([b], pools=[b], **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(train(a, first, [[True] * 3])[0], train(b, second, [[True] * 3])[0])


def test_a_closure_is_refused() -> None:
    parameter = pool()
    with pytest.raises(ValueError, match="closure"):
        PromptAdamW([parameter], pools=[parameter]).step(lambda: 0.0)


def test_pools_of_a_network() -> None:
    from cpl.models import create_model

    network = create_model("cplir-tiny")
    assert [tuple(p.shape[:2]) for p in pools_of(network)] == [(1, 5)] * 3
    assert all(any(p is q for q in network.parameters()) for p in pools_of(network))
