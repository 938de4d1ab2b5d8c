"""Blur of either kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.defocus_blur import DefocusBlur
from cpl.degradations.motion_blur import MotionBlur
from cpl.degradations.parameters import Number, Setting, Word


@dataclass(frozen=True)
class Blur(Degradation):
    """Motion blur or defocus blur, drawn per image; see :class:`MotionBlur` and :class:`DefocusBlur`."""

    name: ClassVar[str] = "blur"
    formula: ClassVar[str] = "y = k * x, k: camera path (motion) or disc (defocus)"
    source: ClassVar[str] = "as motion_blur and defocus_blur"

    kind: Annotated[Setting, Word(("motion", "defocus"), "which blur")] = "motion|defocus"
    length: Annotated[Setting, Number(0, 100, "motion: length of the path", "(pixels)")] = "5..15"
    angle: Annotated[Setting, Number(-360, 360, "motion: direction", "(degrees from horizontal)")] = "0..180"
    bend: Annotated[Setting, Number(-360, 360, "motion: turn from start to end", "(degrees)")] = "-60..60"
    radius: Annotated[Setting, Number(0, 50, "defocus: radius of the disc", "(pixels)")] = "1.5..4"
    light: Annotated[Setting, Word(("srgb", "linear"), "what is averaged: stored values or linear light")] = (
        "srgb"
    )

    @property
    def margin(self) -> int:
        return max(self._part(kind).margin for kind in self.kind.options)

    def _part(self, kind: str) -> Degradation:
        if kind == "motion":
            return MotionBlur(length=self.length, angle=self.angle, bend=self.bend, light=self.light)
        return DefocusBlur(radius=self.radius, light=self.light)

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._part(self.draw_word("kind", rng))._degrade(image, rng)
