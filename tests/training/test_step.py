"""The step module: what goes through forward(), and what reaches the criterion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cpl.training.step import TrainingStep
from cpl.training.trainer import draw_seed
from cpl_kernels import NonFiniteError


class Shift(nn.Module):
    """A stand-in with the network's two methods: adds a learned shift; negatives add a random one."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift

    def forward_with_negatives(
        self, x: Tensor, num_negatives: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        noise = torch.rand(num_negatives, generator=generator).view(-1, 1, 1, 1, 1)
        return self(x), (x + noise).detach()


class Criterion(nn.Module):
    seen: Tensor

    def forward(self, restored: Tensor, target: Tensor, negatives: Tensor, return_parts: bool = False):  # type: ignore[no-untyped-def]
        self.seen = negatives
        loss = (restored - target).abs().mean()
        return (loss, {"pixel": loss.detach()}) if return_parts else loss


def test_l1_and_the_error_of_each_image() -> None:
    step = TrainingStep(Shift())
    degraded, target = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    target[1] = 0.25
    output = step(degraded, target, 0)
    assert output.loss.item() == pytest.approx(0.375)
    assert output.mse.tolist() == pytest.approx([0.25, 0.0625])
    assert not output.mse.requires_grad
    output.loss.backward()
    assert step.model.shift.grad is not None  # type: ignore[union-attr]


def test_mse_is_of_the_clipped_image() -> None:
    step = TrainingStep(Shift())
    output = step(torch.full((1, 3, 4, 4), 1.5), torch.ones(1, 3, 4, 4), 0)
    assert output.mse.item() == 0
    assert output.loss.item() == pytest.approx(0.5)


def test_negatives_reach_the_criterion_and_follow_the_draw() -> None:
    step = TrainingStep(Shift(), Criterion(), 3)
    x = torch.zeros(2, 3, 4, 4)
    seen = []
    for draw in (1, 1, 2):
        step(x, x, draw)
        seen.append(step.criterion.seen)  # type: ignore[union-attr]
    assert seen[0].shape == (3, 2, 3, 4, 4)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_parts_only_when_wanted() -> None:
    step = TrainingStep(Shift(), Criterion(), 1)
    x = torch.zeros(1, 3, 4, 4)
    assert step(x, x, 0).parts == {}
    assert set(step(x, x, 0, True).parts) == {"pixel"}


def test_a_criterion_without_negatives_is_an_error() -> None:
    with pytest.raises(ValueError, match="contrastive criterion"):
        TrainingStep(Shift(), Criterion(), 0)


def test_draws_differ_by_step_and_rank() -> None:
    seeds = {draw_seed(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in (0, 1)}
    assert len(seeds) == 200
    assert all(0 <= s < 2**63 for s in seeds)


class Refuses(Shift):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def test_a_refusal_of_nan_is_a_nan_loss_with_a_backward_pass() -> None:
    """Known by its type, whatever it says."""
    step = TrainingStep(Refuses(NonFiniteError("no softmax")))
    output = step(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), 0)
    assert output.loss.isnan()
    assert output.mse.isnan().tolist() == [True, True]
    output.loss.backward()
    assert step.model.shift.grad.isnan().all()  # type: ignore[union-attr, operator]


def test_any_other_error_ends_the_step() -> None:
    step = TrainingStep(Refuses(ValueError("a non-finite margin was asked for")))
    with pytest.raises(ValueError, match="margin"):
        step(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), 0)
