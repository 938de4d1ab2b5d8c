"""Degradations: how a clean picture becomes noisy, blurred, rainy, hazy, dark, snowy or blocky.

    degrade = create("noise:sigma=25")                  # or "blur", "low_light+haze", {"name": "rain"}
    worse = degrade(image, np.random.default_rng(0))    # float32 [H, W, 3] in [0, 1], as the input

The same generator state gives the same result. docs/degradations.md shows each, with its formula.
"""

from __future__ import annotations

from cpl.degradations.base import Degradation
from cpl.degradations.blur import Blur
from cpl.degradations.composition import Composition
from cpl.degradations.defocus_blur import DefocusBlur
from cpl.degradations.haze import Haze
from cpl.degradations.jpeg import Jpeg
from cpl.degradations.low_light import LowLight
from cpl.degradations.motion_blur import MotionBlur
from cpl.degradations.noise import Noise
from cpl.degradations.rain import Rain
from cpl.degradations.snow import Snow
from cpl.degradations.specification import DEGRADATIONS, create, names

__all__ = [
    "DEGRADATIONS",
    "Blur",
    "Composition",
    "DefocusBlur",
    "Degradation",
    "Haze",
    "Jpeg",
    "LowLight",
    "MotionBlur",
    "Noise",
    "Rain",
    "Snow",
    "create",
    "names",
]
