"""What the routers did since it was last asked: whether they choose, and whether by the degradation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cpl.inference.routing import information

LEAST_IMAGES = 100  # of fewer, what they show by chance hides what routers know
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

    def state(self) -> dict[str, dict[int, Tensor]]:
        """What it has counted; :meth:`load` goes on from there."""
        return {"chosen": self._chosen, "shares": self._shares}

    def load(self, state: Mapping[str, Mapping[int, Tensor]]) -> None:
        self._chosen, self._shares = dict(state["chosen"]), dict(state["shares"])

    def take(self) -> dict[str, float]:
        """For each level ``information``, what the choice tells of the task, as a part of what it could tell at most
        (1: all; less what so few images show by chance), and each prompt's mean ``share``; and of how many ``images``.
        """
        figures = {}
        for level in sorted(self._chosen):
            chosen, shares = self._chosen[level], self._shares[level]
            images = chosen.sum()
            if (known := information(chosen)) is not None:  # of one task there is nothing to tell
                figures[f"routing/information{level}"] = known
            figures["routing/images"] = float(images)
            for prompt, share in enumerate((shares.sum(0) / images).tolist()):
                figures[f"routing/share{level}/{prompt}"] = share
        self._chosen, self._shares = {}, {}
        return figures


def flat(figures: Mapping[str, float]) -> bool | None:
    """Whether no level's choice tells anything of the task; None where too few images were seen to say so."""
    known = [value for name, value in figures.items() if name.startswith("routing/information")]
    if not known or figures["routing/images"] < LEAST_IMAGES:
        return None
    return all(value < FLAT for value in known)
