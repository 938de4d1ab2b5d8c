"""Additive white Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.parameters import Number, Setting


@dataclass(frozen=True)
class Noise(Degradation):
    """y = x + n, n ~ N(0, (sigma / 255)^2), independent per pixel and channel.

    Source: the protocol of Zhang et al., "Beyond a Gaussian Denoiser" (DnCNN), IEEE TIP 2017.
    """

    name: ClassVar[str] = "noise"
    formula: ClassVar[str] = "y = x + n, n ~ N(0, (sigma/255)^2)"
    source: ClassVar[str] = "Zhang et al., DnCNN, IEEE TIP 2017"

    sigma: Annotated[Setting, Number(0, 255, "standard deviation", "(8-bit units)")] = "15|25|50"

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(self.draw("sigma", rng) / 255)
        noise += image
        return noise
