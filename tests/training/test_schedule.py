"""The learning rate by step, against torch's own schedulers and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cpl.training.schedule import CosineSchedule


def test_restarts_agree_with_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=25, eta_min=1e-7)
    ours = CosineSchedule(peak=2e-4, floor=1e-7, periods=(25,) * 4)
    for step in range(100):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_to_the_peak_and_counts_in_the_first_period() -> None:
    schedule = CosineSchedule(peak=1.0, warmup=10, periods=(110,))
    assert [schedule(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.5)  # half of the 100 steps that remain of the period
    assert schedule(110) == 0.0


def test_a_run_may_stop_before_the_period_ends() -> None:
    """120 epochs of a cosine of 150, warm-up 15: the rate ends well above its floor."""
    schedule = CosineSchedule(peak=2e-4, warmup=15, periods=(150,))
    assert schedule(120) == pytest.approx(2e-4 * (1 + math.cos(math.pi * 105 / 135)) / 2)


def test_constant_after_warm_up() -> None:
    schedule = CosineSchedule(peak=3.0, warmup=2)
    assert [schedule(s) for s in (0, 1, 2, 1000)] == [1.5, 3.0, 3.0, 3.0]
