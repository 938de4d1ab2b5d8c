"""Fixed cases to measure on: the same pixels every time, whatever else was drawn before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np

from cpl.data.crops import centre_window, cut, degrade_window
from cpl.data.datasets import PairedDataset, named_image
from cpl.data.seeding import generator
from cpl.degradations import Degradation, create


class Case(TypedDict):
    """A degraded picture and its truth, float32 [H, W, 3] in [0, 1]."""

    task: str
    name: str
    degraded: np.ndarray
    target: np.ndarray


@dataclass
class Cases(Sequence[Case]):
    """Cases made when asked for, so that a benchmark of 500 whole photographs fits into memory.

    Those made first are kept, up to ``keep`` bytes: small validation sets are made once.
    """

    makers: list[Callable[[], Case]]
    keep: int = 512 * 2**20

    def __post_init__(self) -> None:
        self._kept: dict[int, Case] = {}
        self._room = self.keep

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative ones too; IndexError beyond the ends
        if index in self._kept:
            return self._kept[index]
        case = self.makers[index]()
        size = case["degraded"].nbytes + case["target"].nbytes
        if size <= self._room:
            self._room -= size
            self._kept[index] = case
        return case

    def __iter__(self) -> Iterator[Case]:
        return (self[index] for index in range(len(self)))


def evaluation_cases(
    images: Sequence[Any],
    degradations: Mapping[str, str | Mapping[str, Any] | Degradation],
    seed: int,
    crop: int | None = None,
) -> list[Case]:
    """Every image under every degradation, grouped by task in the order given.

    ``images`` and ``degradations`` are as for :class:`SyntheticDataset`; ``crop`` cuts the middle. What
    is drawn depends on (seed, task, name of the image) alone.
    """
    return list(Cases(synthetic_makers(images, degradations, seed, crop), keep=0))


def synthetic_makers(
    images: Sequence[Any],
    degradations: Mapping[str, str | Mapping[str, Any] | Degradation],
    seed: int,
    crop: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[Callable[[], Case]]:
    """What makes each case of :func:`evaluation_cases`; ``indices`` picks images."""
    chosen = range(len(images)) if indices is None else indices
    parsed = {task: create(specification) for task, specification in degradations.items()}
    return [
        partial(_synthetic_case, images, index, task, degradation, seed, crop)
        for task, degradation in parsed.items()
        for index in chosen
    ]


def paired_makers(
    dataset: PairedDataset, crop: int | None = None, indices: Sequence[int] | None = None
) -> list[Callable[[], Case]]:
    """What makes the case of each pair."""
    chosen = range(len(dataset)) if indices is None else indices
    return [partial(_paired_case, dataset, index, crop) for index in chosen]


def _synthetic_case(
    images: Sequence[Any], index: int, task: str, degradation: Degradation, seed: int, crop: int | None
) -> Case:
    name, image = named_image(images, index)
    window = centre_window(image, crop)
    degraded, target = degrade_window(image, window, degradation, generator(seed, "evaluation", task, name))
    return {"task": task, "name": name, "degraded": degraded, "target": np.ascontiguousarray(target)}


def _paired_case(dataset: PairedDataset, index: int, crop: int | None) -> Case:
    name, degraded, target = dataset.pair(index)
    window = centre_window(target, crop)
    return {
        "task": dataset.tasks[0],
        "name": name,
        "degraded": np.ascontiguousarray(cut(degraded, window)),
        "target": np.ascontiguousarray(cut(target, window)),
    }
