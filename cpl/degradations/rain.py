"""Rain streaks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.convolution import convolve
from cpl.degradations.parameters import Number, Setting, Word

# Near drops streak long, wide and bright; far ones are many, short and faint: (size, share, strength).
_LAYERS = ((1.0, 0.15, 1.0), (0.65, 0.35, 0.75), (0.4, 0.5, 0.5))


def streak_kernel(length: float, width: float, angle: float) -> np.ndarray:
    """A streak ``length`` pixels long, Gaussian across (``width`` is the full width at half height).

    ``angle``: degrees from the vertical, the lower end to the right when positive. Its ends fade.
    Returns float64 [k, k], k odd, with maximum 1.
    """
    direction = np.deg2rad(angle)
    half = ceil(length / 2 + 1.5 * width) + 1
    grid = np.arange(-half, half + 1)
    rows, columns = grid[:, None], grid[None, :]
    along = columns * np.sin(direction) + rows * np.cos(direction)
    across = columns * np.cos(direction) - rows * np.sin(direction)
    # A Gaussian across, integrated over a pixel (variance 1/12): a thin streak stays anti-aliased.
    variance = (width / 2.355) ** 2 + 1 / 12
    profile = np.exp(-(across**2) / (2 * variance))
    fade = np.clip((length / 2 + 0.5 - np.abs(along)) / max(1.0, length / 3), 0, 1)
    kernel = profile * fade
    return kernel / kernel.max()


@dataclass(frozen=True)
class Rain(Degradation):
    """y = x + s (additive) or y = 1 - (1 - x)(1 - s) (screen), s: streaks of falling drops.

    s is the sum of three layers, near to far. In each, drops fall at random pixels (a Poisson process
    with ``density`` drops per 1000 pixels over all layers) with brightness uniform in [0.3, 1] *
    ``strength``; a drop leaves a streak of the image's length, width and angle, longer, wider and
    brighter in the nearer layers. ``angle``, ``length``, ``width``, ``density`` and ``strength`` are
    drawn per image; the layers' angles differ by at most 3 degrees.
    Source: additive layers as in Yang et al., "Deep joint rain detection and removal", CVPR 2017
    (Rain100); screen blend as in Luo, Xu, Ji, "Removing rain from a single image via discriminative
    sparse coding", ICCV 2015.
    """

    name: ClassVar[str] = "rain"
    formula: ClassVar[str] = "y = x + s or y = 1 - (1-x)(1-s), s: streaks in three layers"
    source: ClassVar[str] = "Yang et al., CVPR 2017; Luo et al., ICCV 2015"

    angle: Annotated[Setting, Number(-80, 80, "of the streaks", "(degrees from vertical)")] = "-30..30"
    length: Annotated[Setting, Number(1, 200, "of a near streak", "(pixels)")] = "16..40"
    width: Annotated[Setting, Number(0.2, 20, "of a near streak, at half height", "(pixels)")] = "0.8..1.8"
    density: Annotated[Setting, Number(0, 500, "number of streaks", "(per 1000 pixels)")] = "4..10"
    strength: Annotated[Setting, Number(0, 1, "brightness of the brightest streak")] = "0.4..0.85"
    blend: Annotated[Setting, Word(("screen", "additive"), "how streaks join the picture")] = (
        "screen|additive"
    )

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        streaks = self.streaks(image.shape[0], image.shape[1], rng)[..., None]
        if self.draw_word("blend", rng) == "screen":
            return 1 - (1 - image) * (1 - np.minimum(streaks, 1))
        return image + streaks

    def streaks(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """The rain alone, float32 [H, W], at least 0."""
        angle, length, thickness = self.draw("angle", rng), self.draw("length", rng), self.draw("width", rng)
        density, strength = self.draw("density", rng), self.draw("strength", rng)
        total = np.zeros((height, width), dtype=np.float32)
        for size, share, brightness in _LAYERS:
            tilt = angle + rng.uniform(-3, 3)
            kernel = streak_kernel(max(1.0, length * size), max(0.2, thickness * size), tilt)
            drops = scatter(height, width, kernel.shape[0] - 1, density * share / 1000, rng)
            total += np.float32(strength * brightness) * np.maximum(convolve(drops, kernel), 0)
        return total


def scatter(height: int, width: int, margin: int, per_pixel: float, rng: np.random.Generator) -> np.ndarray:
    """Points at random pixels, each of a value in [0.3, 1], float32 [H + margin, W + margin].

    The margin holds those whose mark reaches into the picture from outside.
    """
    canvas = np.zeros((height + margin, width + margin), dtype=np.float32)
    count = int(rng.poisson(per_pixel * canvas.size))
    places = rng.integers(0, canvas.size, count)
    canvas.ravel()[places] = rng.uniform(0.3, 1, count)
    return canvas
