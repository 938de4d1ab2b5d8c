"""Blur of a lens that is out of focus."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.convolution import blur, disc
from cpl.degradations.light import to_linear, to_srgb
from cpl.degradations.parameters import Number, Setting, Word


@dataclass(frozen=True)
class DefocusBlur(Degradation):
    """y = k * x, k a uniform disc: the circle of confusion of a round aperture; mirrored borders.

    ``light=linear`` convolves linear intensities, as a sensor integrates them; ``srgb`` (the usual
    protocol) the stored values. Source: geometrical optics, Pentland, "A new sense for depth of
    field", IEEE TPAMI 1987.
    """

    name: ClassVar[str] = "defocus_blur"
    formula: ClassVar[str] = "y = k * x, k: uniform disc of the given radius, anti-aliased"
    source: ClassVar[str] = "circle of confusion; Pentland, IEEE TPAMI 1987"

    radius: Annotated[Setting, Number(0, 50, "radius of the disc", "(pixels)")] = "1.5..4"
    light: Annotated[Setting, Word(("srgb", "linear"), "what is averaged: stored values or linear light")] = (
        "srgb"
    )

    @property
    def margin(self) -> int:
        return ceil(self.largest("radius"))

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kernel = disc(self.draw("radius", rng))
        if self.draw_word("light", rng) == "linear":
            return to_srgb(blur(to_linear(image), kernel))
        return blur(image, kernel)
