"""Several degradations, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.parameters import Number, Word


@dataclass(frozen=True)
class Composition(Degradation):
    """y = d_n(... d_2(d_1(x))): ``parts`` are applied left to right, each to what the last one made.

    "low_light+rain+haze" is the order of OneRestore (Guo et al., ECCV 2024): darkness is in the scene,
    rain in front of it, haze in front of both.
    """

    parts: tuple[Degradation, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a composition needs at least one degradation")
        for part in self.parts:
            if not isinstance(part, Degradation):
                raise TypeError(f"a composition is made of degradations, got {part!r}")

    @property
    def name(self) -> str:  # type: ignore[override]  # here it depends on the parts
        return "+".join(part.name for part in self.parts)

    @property
    def margin(self) -> int:
        return sum(part.margin for part in self.parts)

    @classmethod
    def parameters(cls) -> dict[str, Number | Word]:
        return {}

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for part in self.parts:
            image = part(image, rng)
        return image

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))
