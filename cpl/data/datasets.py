"""Datasets whose items depend on nothing but the seed and the index.

Indices go on beyond the length: item ``i`` shows image ``i % len(dataset)``, and all of ``i`` seeds its
crop, flips and degradation. So index ``epoch * len(dataset) + j`` gives every epoch draws of its own,
whatever the order, the number of workers or the step a run was resumed at.
"""

from __future__ import annotations

import abc
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cpl.data.config import PairingRule
from cpl.data.crops import Item, as_tensor, augment, check_crop, cut, degrade_window, random_window
from cpl.data.files import DataError, decode, pair_files
from cpl.data.photos import Photo
from cpl.data.seeding import generator
from cpl.degradations import Degradation, create


class _Endless(Dataset[Item], abc.ABC):
    """A map-style dataset with virtual indices; iterating goes over one epoch."""

    tasks: list[str]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Item: ...

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


class SyntheticDataset(_Endless):
    """Clean images, degraded on the fly: every image with every task.

    Args:
        images: arrays float32 [H, W, 3] in [0, 1], :class:`Photo` objects or an :class:`ImageFolder`.
        degradations: task name -> specification (see :func:`cpl.degradations.create`).
        crop: side of the square crop in pixels; None keeps whole images. Smaller images are mirrored.
        seed: of every draw.
        augment: one of the 8 flips and quarter turns, at random.
        repeats: how often an epoch visits each image per task; one number, or task name -> number
            (1 for tasks not named).

    An epoch interleaves the tasks, so that any run of consecutive indices is balanced by ``repeats``.
    """

    def __init__(
        self,
        images: Sequence[Any],
        degradations: Mapping[str, str | Mapping[str, Any] | Degradation],
        crop: int | None = 128,
        seed: int = 0,
        augment: bool = True,
        repeats: int | Mapping[str, int] = 1,
    ) -> None:
        if len(images) == 0:
            raise ValueError("images is empty; give at least one")
        if not degradations:
            raise ValueError("degradations is empty; give at least one, as {'noise': 'noise:sigma=25'}")
        self.images, self.crop, self.seed, self.augment = images, check_crop(crop), int(seed), augment
        self.tasks = list(degradations)
        self.degradations = [create(specification) for specification in degradations.values()]
        self._slots = _slots(self.tasks, repeats)

    def __len__(self) -> int:
        return len(self.images) * len(self._slots)

    def __getitem__(self, index: int) -> Item:
        index = _index(index)
        position = index % len(self)
        task = self._slots[position % len(self._slots)]
        name, image = named_image(self.images, position // len(self._slots))
        rng = generator(self.seed, "synthetic", index)
        window = random_window(image, self.crop, rng)
        transform = int(rng.integers(8)) if self.augment else 0
        degraded, target = degrade_window(image, window, self.degradations[task], rng, transform)
        return {"degraded": as_tensor(degraded), "target": as_tensor(target), "task": task, "name": name}


class PairedDataset(_Endless):
    """Degraded images and their truths from two folders.

    Args:
        input_dir, target_dir: the folders; one folder may hold both (see :func:`pair_files`).
        task: the name of what was done to the inputs.
        crop, seed, augment: as for :class:`SyntheticDataset`; both sides get the same window.
        pairing: "stem" (the same name), "rain100l", "reside", "gopro", "outdoor_rain", "raindrop", or a
            :class:`PairingRule`.
        recursive: whether to look in sub-folders.

    Raises:
        DataError: a missing or empty folder, an input without target; on access, a file that cannot be
            decoded or two of different sizes.
    """

    def __init__(
        self,
        input_dir: str | os.PathLike[str],
        target_dir: str | os.PathLike[str],
        task: str = "paired",
        crop: int | None = 128,
        seed: int = 0,
        augment: bool = True,
        pairing: str | PairingRule = "stem",
        recursive: bool = False,
    ) -> None:
        self.pairs = pair_files(input_dir, target_dir, pairing, recursive)
        self.tasks = [task]
        self.crop, self.seed, self.augment = check_crop(crop), int(seed), augment

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, position: int) -> tuple[str, np.ndarray, np.ndarray]:
        """(name, degraded, target), whole, float32 [H, W, 3] in [0, 1]."""
        name, input_path, target_path = self.pairs[position]
        degraded, target = decode(input_path), decode(target_path)
        if degraded.shape != target.shape:
            raise DataError(size_mismatch(input_path, degraded.shape[:2], target_path, target.shape[:2]))
        return name, degraded, target

    def __getitem__(self, index: int) -> Item:
        index = _index(index)
        name, degraded, target = self.pair(index % len(self))
        rng = generator(self.seed, "paired", index)
        window = random_window(target, self.crop, rng)
        transform = int(rng.integers(8)) if self.augment else 0
        degraded, target = (augment(cut(image, window), transform) for image in (degraded, target))
        return {"degraded": as_tensor(degraded), "target": as_tensor(target), "task": 0, "name": name}


class MixedDataset(_Endless):
    """Several datasets as one; each is visited ``repeats`` times per epoch, with draws of its own.

    ``tasks`` is the union of theirs, in order of first appearance; items carry the index in it.
    """

    def __init__(self, datasets: Sequence[_Endless], repeats: Sequence[int] | None = None) -> None:
        self.datasets = list(datasets)
        self.repeats = [1] * len(self.datasets) if repeats is None else [_positive(r) for r in repeats]
        if not self.datasets:
            raise ValueError("datasets is empty; give at least one")
        if len(self.repeats) != len(self.datasets):
            raise ValueError(
                f"{len(self.datasets)} datasets but {len(self.repeats)} repeats; give one for each"
            )
        self.tasks = list(dict.fromkeys(task for dataset in self.datasets for task in dataset.tasks))
        self._task_maps = [[self.tasks.index(task) for task in dataset.tasks] for dataset in self.datasets]
        sizes = [len(d) * r for d, r in zip(self.datasets, self.repeats, strict=True)]
        self._ends = np.cumsum(sizes).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        epoch, position = divmod(_index(index), len(self))
        part = int(np.searchsorted(self._ends, position, side="right"))
        start = self._ends[part - 1] if part else 0
        item = self.datasets[part][epoch * (self._ends[part] - start) + position - start]
        return {**item, "task": self._task_maps[part][item["task"]]}


def named_image(images: Sequence[Any], index: int) -> tuple[str, np.ndarray]:
    """(name, image) of a sequence of arrays, photos or other objects with ``name`` and ``image``."""
    entry = images[index]
    if isinstance(entry, np.ndarray):
        return f"image{index:04d}", entry
    if isinstance(entry, Photo) or (hasattr(entry, "name") and hasattr(entry, "image")):
        return str(entry.name), entry.image
    raise TypeError(f"images must hold arrays [H, W, 3] or photos, got {type(entry).__name__} at {index}")


def size_mismatch(
    first: os.PathLike[str],
    first_size: tuple[int, ...],
    second: os.PathLike[str],
    second_size: tuple[int, ...],
) -> str:
    """The message for a pair whose sizes (height, width) differ."""
    sizes = [f"{os.fspath(p)} is {s[1]}x{s[0]}" for p, s in ((first, first_size), (second, second_size))]
    return f"a pair must have one size, but {' and '.join(sizes)}; crop one, or check the pairing"


def _slots(tasks: list[str], repeats: int | Mapping[str, int]) -> list[int]:
    """Task indices in the order an epoch visits them, those with repeats spread out between the others."""
    if isinstance(repeats, Mapping):
        unknown = sorted(set(repeats) - set(tasks))
        if unknown:
            raise ValueError(f"repeats names {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
        counts = [_positive(repeats.get(task, 1)) for task in tasks]
    else:
        counts = [_positive(repeats)] * len(tasks)
    # The k-th of n visits belongs at (k + 1/2) / n of the epoch; ties in the order of the tasks.
    places = [((k + 0.5) / n, task) for task, n in enumerate(counts) for k in range(n)]
    return [task for _, task in sorted(places)]


def _positive(repeats: Any) -> int:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be whole numbers, at least 1; got {repeats!r}")
    return repeats


def _index(index: Any) -> int:
    number = operator.index(index)
    if number < 0:
        raise IndexError(f"indices start at 0, got {number}")
    return number
