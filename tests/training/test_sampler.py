"""Which items a step takes: resumable from any step, disjoint between ranks."""

from __future__ import annotations

from itertools import chain

import pytest

from cpl.training.sampler import StepBatchSampler


def batches(start: int = 0, stop: int = 10, rank: int = 0, ranks: int = 1, length: int = 7, seed: int = 3):  # type: ignore[no-untyped-def]
    return list(
        StepBatchSampler(length, seed=seed, batch_size=3, start=start, stop=stop, rank=rank, ranks=ranks)
    )


def test_starting_late_gives_the_rest_of_the_same_run() -> None:
    assert batches(start=6) == batches()[6:]


def test_every_epoch_visits_every_item_once_in_its_own_order() -> None:
    flat = list(chain.from_iterable(batches(stop=14)))  # 42 positions = 6 epochs of 7
    epochs = [flat[i : i + 7] for i in range(0, 42, 7)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == list(range(7 * number, 7 * number + 7))
    assert len({tuple(i % 7 for i in epoch) for epoch in epochs}) > 1


def test_ranks_are_disjoint_and_together_take_every_item() -> None:
    first, second = (set(chain.from_iterable(batches(rank=r, ranks=2, stop=7))) for r in (0, 1))
    assert not first & second
    assert first | second == set(range(42))


def test_the_seed_sets_the_order() -> None:
    assert batches(seed=1) != batches(seed=2)


def test_an_empty_dataset_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 items"):
        batches(length=0)
