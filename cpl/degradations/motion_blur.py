"""Blur by the movement of the camera during the exposure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.convolution import blur, splat
from cpl.degradations.light import to_linear, to_srgb
from cpl.degradations.parameters import Number, Setting, Word

_POINTS_PER_PIXEL = 8  # dense enough that the trajectory shows no beads


def motion_kernel(length: float, angle: float, bend: float) -> np.ndarray:
    """The trace of a point that travels ``length`` pixels at constant speed along an arc.

    ``angle``: direction at the middle of the path, degrees from the horizontal, anticlockwise.
    ``bend``: by how many degrees the direction turns from start to end; 0 is a straight line.
    Returns float64 [k, k], k odd, centred on the trace's centre of mass, with sum 1.
    """
    steps = max(1, ceil(length * _POINTS_PER_PIXEL))
    along = (np.arange(steps) + 0.5) / steps - 0.5  # the path's parameter, symmetric about its middle
    direction = np.deg2rad(angle + bend * along)
    columns = np.cumsum(np.cos(direction)) * length / steps
    rows = -np.cumsum(np.sin(direction)) * length / steps  # rows grow downwards
    columns -= columns.mean()
    rows -= rows.mean()
    reach = max(np.abs(columns).max(), np.abs(rows).max())
    kernel = splat(rows, columns, np.full(steps, 1 / steps), 2 * (ceil(reach) + 1) + 1)
    return kernel / kernel.sum()


@dataclass(frozen=True)
class MotionBlur(Degradation):
    """y = k * x, k the trace of a linear or curved camera path; mirrored borders.

    ``light=linear`` convolves linear intensities, as a sensor integrates them; ``srgb`` (the usual
    protocol) the stored values. Source: uniform motion blur as in Levin et al., "Understanding and
    evaluating blind deconvolution algorithms", CVPR 2009; the arc is the simplest curved trajectory.
    """

    name: ClassVar[str] = "motion_blur"
    formula: ClassVar[str] = "y = k * x, k: trace of an arc of given length, angle and bend"
    source: ClassVar[str] = "Levin et al., CVPR 2009 (uniform blur model)"

    length: Annotated[Setting, Number(0, 100, "length of the path", "(pixels)")] = "5..15"
    angle: Annotated[Setting, Number(-360, 360, "direction at its middle", "(degrees from horizontal)")] = (
        "0..180"
    )
    bend: Annotated[Setting, Number(-360, 360, "turn from start to end; 0: straight", "(degrees)")] = (
        "-60..60"
    )
    light: Annotated[Setting, Word(("srgb", "linear"), "what is averaged: stored values or linear light")] = (
        "srgb"
    )

    @property
    def margin(self) -> int:
        return ceil(self.largest("length")) + 1

    def kernel(self, rng: np.random.Generator) -> np.ndarray:
        """A kernel, float64 [k, k] with sum 1, for freshly drawn parameters."""
        return motion_kernel(self.draw("length", rng), self.draw("angle", rng), self.draw("bend", rng))

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kernel = self.kernel(rng)
        if self.draw_word("light", rng) == "linear":
            return to_srgb(blur(to_linear(image), kernel))
        return blur(image, kernel)
