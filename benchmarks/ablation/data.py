"""Crops for the ablation: the same ones, in the same order, for every arm.

Photos are halved (a crop of 64 pixels of a large photo is often smooth), one in ten is held out, and degraded crops are
made once and kept as 8-bit arrays, as photos are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from cpl.data.datasets import SyntheticDataset
from cpl.data.files import list_images
from cpl.data.photos import Photo
from cpl.errors import CplError
from cpl.files import atomic_write

TASKS: Mapping[str, str] = {
    "noise": "noise:sigma=10..50",
    "blur": "blur",
    "rain": "rain",
    "haze": "haze",
    "low_light": "low_light",
}
# Held-out photos are also degraded in these ways: noise of one strength, and degradations that training never shows.
UNSEEN: Mapping[str, str] = {
    "noise 25": "noise:sigma=25",
    "noise 35": "noise:sigma=35",
    "jpeg": "jpeg:quality=20",
    "haze+noise": "haze+noise:sigma=25",
}
CLEAN = "clean"
HELD_OUT = 10  # one photo in so many
TRAIN_SIDE, TEST_SIDE = 64, 128
TEST_CROPS = 2  # of each held-out photo and degradation
SEED = 20261201


@dataclass(frozen=True)
class Crops:
    """degraded, target: uint8 [n, 3, S, S]; tasks: int64 [n], indices of ``names``."""

    degraded: Tensor
    target: Tensor
    tasks: Tensor
    names: tuple[str, ...]
    made: str = ""  # from what: their digest

    def of(self, name: str) -> Tensor:
        """Positions of a task's crops, in order."""
        return (self.tasks == self.names.index(name)).nonzero()[:, 0]


def as_float(images: Tensor) -> Tensor:
    """[0, 1]"""
    return images.float() / 255


class Halved(Sequence[Photo]):
    """Photos at half their size, decoded once, with 8 bits."""

    def __init__(self, files: Sequence[Path]) -> None:
        from PIL import Image

        self.photos: list[tuple[str, np.ndarray]] = []
        for path in track(files, "reading photos"):
            with Image.open(path) as image:
                size = image.width // 2, image.height // 2
                half = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            self.photos.append((path.stem, np.asarray(half)))

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Any) -> Any:
        name, image = self.photos[index]
        return Photo(name, image.astype(np.float32) / 255, "", "")


def prepare(folder: Path, work: Path, count: int) -> tuple[Crops, Crops]:
    """``count`` training crops and those of the held-out photos; made once, then read from ``work``.

    Raises:
        CplError: too few photos to hold some out.
    """
    files = list_images(folder, recursive=True)
    held_out = files[::HELD_OUT]
    if len(held_out) < 2:
        raise CplError(
            f"{folder}: {len(files)} photos; give at least {HELD_OUT + 1}, of which one in {HELD_OUT} is held out"
        )
    rest = sorted(set(files) - set(held_out))
    made = digest(files)
    train = _kept(
        work / f"train-{made}-{count}.npz",
        lambda: _crops(Halved(rest), TASKS, TRAIN_SIDE, count, augment=True),
    )
    degradations = {**TASKS, **UNSEEN}
    test = _kept(
        work / f"test-{made}.npz",
        lambda: _crops(
            Halved(held_out),
            degradations,
            TEST_SIDE,
            len(held_out) * len(degradations) * TEST_CROPS,
            augment=False,
        ),
    )
    return train, test


def digest(files: Sequence[Path]) -> str:
    """Of what crops hang on: the photos, by name and size, and this file's settings."""
    told = [(path.name, path.stat().st_size) for path in files], dict(TASKS), dict(UNSEEN), HELD_OUT, SEED
    sides = TRAIN_SIDE, TEST_SIDE, TEST_CROPS
    return hashlib.blake2b(repr((told, sides)).encode(), digest_size=6).hexdigest()


def _crops(photos: Halved, degradations: Mapping[str, str], side: int, count: int, augment: bool) -> Crops:
    items = SyntheticDataset(photos, degradations, crop=side, seed=SEED, augment=augment)
    degraded = torch.empty(count, 3, side, side, dtype=torch.uint8)
    target, tasks = torch.empty_like(degraded), torch.empty(count, dtype=torch.int64)
    for i in track(range(count), f"degrading {count} crops"):
        item = items[i]
        degraded[i], target[i] = (
            (item[key].clamp(0, 1) * 255).round().to(torch.uint8)
            for key in ("degraded", "target")  # type: ignore[literal-required]
        )
        tasks[i] = item["task"]
    return Crops(degraded, target, tasks, tuple(degradations))


def _kept(path: Path, make: Any) -> Crops:
    if not path.exists():
        crops = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(
                file, degraded=crops.degraded.numpy(), target=crops.target.numpy(), tasks=crops.tasks.numpy(),
                names=np.array(crops.names),
            )  # fmt: skip
    with np.load(path) as held:
        arrays = (torch.from_numpy(held[name]) for name in ("degraded", "target", "tasks"))
        return Crops(*arrays, tuple(str(name) for name in held["names"]), path.stem)
