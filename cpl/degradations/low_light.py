"""Too little light, and the sensor noise that then shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.light import to_linear, to_srgb
from cpl.degradations.parameters import Number, Setting


@dataclass(frozen=True)
class LowLight(Degradation):
    """In linear light L of x: L' = scale * L^gamma + n, n ~ N(0, L'/photons + read^2); y is L' in sRGB.

    ``scale`` is the illumination that is left; ``gamma`` > 1 crushes the shadows further. Shot noise:
    ``photons`` counted at full white (0: none); read noise: a fraction of full white (0: none).
    Source: illumination and gamma as in Lv, Li, Lu, "Attention guided low-light image enhancement",
    IJCV 2021; noise as in Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data", IEEE TIP 2008.
    """

    name: ClassVar[str] = "low_light"
    formula: ClassVar[str] = "linear light: L' = scale L^gamma + n, n ~ N(0, L'/photons + read^2)"
    source: ClassVar[str] = "Lv et al., IJCV 2021; Foi et al., IEEE TIP 2008"

    scale: Annotated[Setting, Number(0, 1, "illumination that is left", "(of 1, linear)")] = "0.04..0.15"
    gamma: Annotated[Setting, Number(0.2, 5, "exponent in linear light")] = "1..1.2"
    photons: Annotated[Setting, Number(0, 1e9, "shot noise: photons at full white; 0: none")] = 4000
    read: Annotated[Setting, Number(0, 1, "read noise: standard deviation; 0: none", "(of full white)")] = (
        0.0004
    )

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scale, gamma = self.draw("scale", rng), self.draw("gamma", rng)
        photons, read = self.draw("photons", rng), self.draw("read", rng)
        light = to_linear(image)
        if gamma != 1:
            light = light ** np.float32(gamma)
        light = light * np.float32(scale)
        if photons or read:
            variance = light / photons if photons else np.zeros_like(light)
            deviation = np.sqrt(variance + np.float32(read**2))
            light = light + deviation * rng.standard_normal(light.shape, dtype=np.float32)
        return to_srgb(light)
