"""From whole images to training crops: where to cut, how to turn, and how to become tensors."""

from __future__ import annotations

from typing import TypeAlias, TypedDict

import numpy as np
import torch

from cpl.degradations import Degradation

Window: TypeAlias = tuple[int, int, int, int]  # top, left, rows, columns


class Item(TypedDict):
    """What a dataset returns: images as float32 [3, H, W] in [0, 1], and the index of the task."""

    degraded: torch.Tensor
    target: torch.Tensor
    task: int
    name: str


def random_window(image: np.ndarray, crop: int | None, rng: np.random.Generator) -> Window:
    """A random ``crop`` x ``crop`` window of ``image``; the whole image for None.

    An image smaller than the crop is taken from its first pixel on; :func:`cut` mirrors what lacks.
    """
    height, width = image.shape[:2]
    if crop is None:
        return 0, 0, height, width
    return (
        int(rng.integers(max(height - crop, 0) + 1)),
        int(rng.integers(max(width - crop, 0) + 1)),
        crop,
        crop,
    )


def centre_window(image: np.ndarray, crop: int | None) -> Window:
    """The ``crop`` x ``crop`` window in the middle, no larger than the image."""
    height, width = image.shape[:2]
    rows, columns = (height, width) if crop is None else (min(crop, height), min(crop, width))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def cut(image: np.ndarray, window: Window, margin: int = 0) -> np.ndarray:
    """The window of ``image`` [H, W, 3] with ``margin`` pixels around it, mirrored where the image ends."""
    top, left, rows, columns = window
    height, width = image.shape[:2]
    first = (top - margin, left - margin)
    last = (top + rows + margin, left + columns + margin)
    inner = image[max(first[0], 0) : last[0], max(first[1], 0) : last[1]]
    before = (max(-first[0], 0), max(-first[1], 0))
    after = (max(last[0] - height, 0), max(last[1] - width, 0))
    if not any(before) and not any(after):
        return inner
    return np.pad(inner, ((before[0], after[0]), (before[1], after[1]), (0, 0)), mode="reflect")


def augment(image: np.ndarray, transform: int) -> np.ndarray:
    """One of the 8 symmetries of the square: ``transform`` in [0, 8); 0 changes nothing.

    ``transform % 4`` quarter turns anticlockwise, after a left-right flip when ``transform >= 4``.
    """
    flipped = image[:, ::-1] if transform >= 4 else image
    return np.rot90(flipped, transform % 4)


def undo_augment(image: np.ndarray, transform: int) -> np.ndarray:
    """The inverse of :func:`augment`."""
    turned = np.rot90(image, -(transform % 4))
    return turned[:, ::-1] if transform >= 4 else turned


def degrade_window(
    image: np.ndarray,
    window: Window,
    degradation: Degradation,
    rng: np.random.Generator,
    transform: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(degraded, target) of a window of a clean image, turned before it is degraded.

    Only the window and what its result depends on is degraded, not the whole image. Turned before, so
    that rain falls down and the sky is above, whichever way the picture lies.
    """
    margin = degradation.margin
    clean = augment(cut(image, window, margin), transform)
    degraded = degradation(clean, rng)
    inner = slice(margin, -margin or None)
    return degraded[inner, inner], clean[inner, inner]


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """float32 [H, W, 3] to a contiguous float32 [3, H, W] of its own memory."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C"))


def check_crop(crop: int | None) -> int | None:
    """``crop``, if it can be the side of a crop."""
    if crop is not None and (isinstance(crop, bool) or not isinstance(crop, int) or crop < 1):
        raise ValueError(
            f"crop must be a number of pixels, at least 1, or None for whole images; got {crop!r}"
        )
    return crop
