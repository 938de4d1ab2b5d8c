"""Haze: light scattered away from the object, and air light scattered in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.parameters import Number, Setting

_CELLS = 4  # bumps of the depth field along the shorter side of a scene
_NEAREST = 0.2  # depth of the nearest point: no place is wholly free of haze


@dataclass(frozen=True)
class Haze(Degradation):
    """I = J t + A (1 - t), t = exp(-beta d): the atmospheric scattering model, d a random smooth depth.

    The depth lies in [0.2, 1]: a mixture of distance growing upwards (share ``slope``) and a random
    field, a cubic B-spline over a coarse grid, so that t has no edges. A crop is taken to be a window
    somewhere in a scene of at least ``scene`` pixels, so that its depth varies no faster than that of
    a whole picture. ``airlight`` is grey, with a colour cast of at most ``tint``.
    Source: Koschmieder 1924 in the form of Narasimhan and Nayar, "Vision and the atmosphere", IJCV
    2002; parameter ranges after Li et al., "Benchmarking single-image dehazing" (RESIDE), IEEE TIP 2019.
    """

    name: ClassVar[str] = "haze"
    formula: ClassVar[str] = "I = J t + A (1 - t), t = exp(-beta d), d smooth random depth in [0.2, 1]"
    source: ClassVar[str] = "Narasimhan & Nayar, IJCV 2002; RESIDE, Li et al., IEEE TIP 2019"

    beta: Annotated[Setting, Number(0, 1000, "scattering coefficient", "(per unit of depth)")] = "0.8..2.2"
    airlight: Annotated[Setting, Number(0, 1, "brightness A of the air")] = "0.75..0.95"
    tint: Annotated[Setting, Number(0, 0.5, "greatest deviation of A in each channel")] = 0.02
    slope: Annotated[Setting, Number(0, 1, "share of the depth that grows upwards")] = 0.5
    scene: Annotated[
        Setting, Number(1, 100000, "least size of the scene a crop is a window of", "(pixels)")
    ] = 400

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        beta, airlight = self.draw("beta", rng), self.draw("airlight", rng)
        tint, slope = self.draw("tint", rng), self.draw("slope", rng)
        depth = depth_field(height, width, rng, slope=slope, scene=round(self.draw("scene", rng)))
        air = np.clip(airlight + rng.uniform(-tint, tint, 3), 0, 1).astype(np.float32)
        transmission = np.exp(np.float32(-beta) * depth)[..., None]
        return air + (image - air) * transmission


def depth_field(height: int, width: int, rng: np.random.Generator, *, slope: float, scene: int) -> np.ndarray:
    """A smooth random depth in [0.2, 1], float32 [H, W]."""
    rows, row_span = _window(height, scene, rng)
    columns, column_span = _window(width, scene, rng)
    cell = min(row_span, column_span) / _CELLS
    down, across = _spline_weights(rows / cell), _spline_weights(columns / cell)
    # B-splines are convex combinations, and so much smoother than their grid: stretched to use [0, 1].
    grid = rng.uniform(-0.5, 1.5, (down.shape[1], across.shape[1])).astype(np.float32)
    bumps = np.clip(down @ grid @ across.T, 0, 1)  # [H, W]
    distance = (1 - rows / row_span).astype(np.float32)[:, None]  # 1 at the top of the scene
    return _NEAREST + (1 - _NEAREST) * (slope * distance + np.float32(1 - slope) * bumps).astype(np.float32)


def _window(size: int, scene: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Positions of ``size`` pixels in a scene, and the scene's extent."""
    span = max(size, scene)
    return rng.uniform(0, span - size) + 0.5 + np.arange(size), span


def _spline_weights(positions: np.ndarray) -> np.ndarray:
    """Cubic B-spline weights of knots 0, 1, 2, ... at ``positions``: float32 [len(positions), knots]."""
    knots = np.arange(int(np.floor(positions[-1])) + 4)
    distance = np.abs(positions[:, None] + 1 - knots[None, :])  # knot 0 lies at -1, so that all is covered
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)
