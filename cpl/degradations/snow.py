"""Falling snow."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.convolution import convolve
from cpl.degradations.motion_blur import motion_kernel
from cpl.degradations.parameters import Number, Setting
from cpl.degradations.rain import scatter
from cpl.extras import require

# Near flakes are few, large and out of focus; far ones many and small: (size, share, opacity).
_LAYERS = ((1.0, 0.06, 0.75), (0.55, 0.3, 0.9), (0.28, 0.64, 1.0))
_SHAPES = 2  # different flakes per layer
_LUMPS = 4  # discs that make up one flake


def flake_kernel(size: float, angle: float, rng: np.random.Generator) -> np.ndarray:
    """One flake about ``size`` pixels across, a lumpy soft disc smeared along its fall.

    ``angle``: degrees from the vertical. Returns float64 [k, k], k odd, with maximum 1.
    """
    smear = motion_kernel(0.35 * size, 90 + angle, 0)
    softness = max(0.45, 0.16 * size)  # sigma of the edge: out of focus, and anti-aliased
    side = 2 * ceil(0.5 * size + 3 * softness) + 1 + smear.shape[0] - 1
    grid = np.arange(side) - side // 2
    flake = np.zeros((side, side))
    for _ in range(_LUMPS):
        row, column = rng.uniform(-0.22, 0.22, 2) * size
        radius = rng.uniform(0.18, 0.32) * size
        distance = np.hypot(grid[:, None] - row, grid[None, :] - column)
        flake = np.maximum(flake, 1 / (1 + np.exp((distance - radius) / (0.5 * softness))))
    flake = require("scipy.ndimage").convolve(flake, smear, mode="constant")
    return flake / flake.max()


@dataclass(frozen=True)
class Snow(Degradation):
    """y = x (1 - z) + c z: flakes of colour c cover the picture with opacity z.

    z is made of three layers, far to near, joined as 1 - product of (1 - z_l). In each, flakes fall at
    random pixels (a Poisson process, ``density`` flakes per 1000 pixels over all layers); a flake is a
    lumpy soft disc, ``size`` pixels across in the near layer. c is white, darkened a little.
    Source: the composition of Liu et al., "DesnowNet: context-aware deep network for snow removal",
    IEEE TIP 2018 (Snow100K); the flakes' shapes are this library's own.
    """

    name: ClassVar[str] = "snow"
    formula: ClassVar[str] = "y = x (1 - z) + c z, z: opacity of flakes in three layers"
    source: ClassVar[str] = "Liu et al., DesnowNet, IEEE TIP 2018"

    size: Annotated[Setting, Number(0.5, 100, "across a near flake", "(pixels)")] = "6..14"
    density: Annotated[Setting, Number(0, 500, "number of flakes", "(per 1000 pixels)")] = "3..9"
    angle: Annotated[Setting, Number(-90, 90, "of the fall", "(degrees from vertical)")] = "-30..30"
    opacity: Annotated[Setting, Number(0, 1, "of a flake's middle")] = "0.8..1"

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        size, density = self.draw("size", rng), self.draw("density", rng)
        angle, opacity = self.draw("angle", rng), self.draw("opacity", rng)
        clear = np.ones((height, width), dtype=np.float32)  # what is left of the picture
        for scale, share, strength in _LAYERS:
            for _ in range(_SHAPES):
                kernel = flake_kernel(max(0.5, size * scale), angle, rng)
                flakes = scatter(height, width, kernel.shape[0] - 1, density * share / _SHAPES / 1000, rng)
                cover = np.clip(convolve(flakes, kernel), 0, 1)
                clear *= 1 - np.float32(strength * opacity) * cover
        colour = np.float32(rng.uniform(0.92, 1))
        return image * clear[..., None] + colour * (1 - clear[..., None])
