"""What the routers did since it was last asked: whether they choose, and whether by the degradation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cpl.inference.routing import mutual_information

FLAT = 0.02  # of the tasks' entropy: what a router knows that hardly knows anything


class RoutingMeter:
    """Counts first choices by task, and adds up shares; nothing is read from the device until :meth:`take`.

    Args:
        num_tasks: T; tasks are numbered from 0.
    """

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self._chosen: dict[int, Tensor] = {}  # [T, N]
        self._shares: dict[int, Tensor] = {}

    def add(self, logits: Mapping[int, Tensor], tasks: Tensor) -> None:
        """``logits``: level -> [B, N]; ``tasks``: [B]."""
        for level, values in logits.items():
            shape = self.num_tasks, values.shape[1]
            p = values.double().softmax(1)
            for sums, rows in (
                (self._chosen, torch.nn.functional.one_hot(values.argmax(1), shape[1]).double()),
                (self._shares, p),
            ):
                if level not in sums:
                    sums[level] = p.new_zeros(shape)
                sums[level].index_add_(0, tasks.to(p.device), rows)

    def take(self) -> dict[str, float]:
        """For each level: ``information``, what the choice tells of the task, as a part of the tasks' entropy (1: all; what
        as few images show by chance is taken off),
        and each prompt's mean ``share``."""
        figures = {}
        for level in sorted(self._chosen):
            chosen, shares = self._chosen[level], self._shares[level]
            images = chosen.sum()
            entropy = mutual_information(torch.diag(chosen.sum(1)))
            if entropy:  # of one task there is nothing to tell
                used = int((chosen.sum(0) > 0).sum())
                by_chance = (self.num_tasks - 1) * (used - 1) / (2 * math.log(2) * float(images))
                figures[f"routing/information{level}"] = max(0.0, mutual_information(chosen) - by_chance) / entropy
            for prompt, share in enumerate((shares.sum(0) / images).tolist()):
                figures[f"routing/share{level}/{prompt}"] = share
        self._chosen, self._shares = {}, {}
        return figures


def flat(figures: Mapping[str, float]) -> bool:
    """Whether no level's choice tells anything of the task."""
    known = [value for name, value in figures.items() if name.startswith("routing/information")]
    return bool(known) and all(value < FLAT for value in known)
