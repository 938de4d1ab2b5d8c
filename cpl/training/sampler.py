"""Which dataset items a step trains on: a function of (seed, step, rank), so that a run resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def item_at(seed: int, position: int, length: int) -> int:
    """Virtual index of the ``position``-th item of the run: epoch * length + a shuffled index.

    Every epoch visits every item once, in an order of its own. The datasets of :mod:`cpl.data` take
    the virtual index: ``index % length`` names the image, the whole of it seeds crop, flips and
    degradation, so that no epoch repeats another's draws.
    """
    epoch, offset = divmod(position, length)
    return epoch * length + int(_order(seed, epoch, length)[offset])


_last_order: tuple[tuple[int, int, int], np.ndarray] | None = None


def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    global _last_order  # positions come in order, so one epoch is all that is worth keeping
    key = (seed, epoch, length)
    if _last_order is None or _last_order[0] != key:
        _last_order = (key, np.random.default_rng([seed, epoch]).permutation(length))
    return _last_order[1]


class StepBatchSampler(Sampler[list[int]]):
    """Yields one batch of indices per step, from ``start`` (inclusive) to ``stop`` (exclusive).

    Step ``s`` takes positions ``[s * B * R, (s + 1) * B * R)`` for ``R`` ranks of batch ``B``; rank
    ``r`` the ``r``-th run of ``B`` of them. Within an epoch, ranks and steps never share an item.
    """

    def __init__(
        self, length: int, *, seed: int, batch_size: int, start: int, stop: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if length < 1:
            raise ValueError(f"the dataset holds {length} items; training needs at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in [0, {ranks}), got {rank}")
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.start, self.stop, self.rank, self.ranks = start, stop, rank, ranks

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.ranks + self.rank) * self.batch_size
            yield [item_at(self.seed, first + i, self.length) for i in range(self.batch_size)]
