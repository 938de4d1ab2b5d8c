"""JPEG compression."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from cpl.degradations.base import Degradation
from cpl.degradations.parameters import Number, Setting, Word
from cpl.extras import require

_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's numbers


@dataclass(frozen=True)
class Jpeg(Degradation):
    """y = decode(encode(round(255 x), quality)) / 255, by Pillow (libjpeg), in memory.

    Source: the codec, ITU-T T.81; Wallace, "The JPEG still picture compression standard", 1992.
    """

    name: ClassVar[str] = "jpeg"
    formula: ClassVar[str] = "y = decode(encode(x, quality))"
    source: ClassVar[str] = "ITU-T T.81; Wallace, IEEE Trans. Consumer Electronics 1992"

    quality: Annotated[Setting, Number(1, 95, "libjpeg's quality")] = "10..40"
    chroma: Annotated[Setting, Word(tuple(_SUBSAMPLING), "chroma subsampling")] = "4:2:0"

    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pil = require("PIL.Image")
        coded = io.BytesIO()
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        quality = round(self.draw("quality", rng))
        subsampling = _SUBSAMPLING[self.draw_word("chroma", rng)]
        pil.fromarray(pixels).save(coded, "JPEG", quality=quality, subsampling=subsampling)
        coded.seek(0)
        with pil.open(coded) as decoded:
            return np.asarray(decoded, dtype=np.float32) / 255
