"""What every degradation is: a function of an image and a random generator, with checked parameters."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import numpy as np

from cpl.degradations.parameters import Number, Range, Setting, Word

_SLACK = 1e-3  # resampling overshoots [0, 1] a little; 8-bit values overshoot it by 254


@dataclass(frozen=True)
class Degradation(ABC):
    """Makes an image worse: ``degradation(image, rng) -> image`` of the same shape.

    A subclass is a frozen dataclass whose fields are annotated with a :class:`Number` or a
    :class:`Word` (what is allowed; the default is written as a user would) and implements
    ``_degrade``. It holds no state: the same image and the same state of the generator
    give the same result.
    """

    name: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for key, parameter in self.parameters().items():
            # frozen: the value is replaced once, here, by its checked form
            object.__setattr__(self, key, parameter.parse(self.name, key, getattr(self, key)))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrade ``image``, float32 [H, W, 3] in [0, 1]; returns a new array of the same kind.

        Raises:
            TypeError: not a float array, or ``rng`` is no ``numpy.random.Generator``.
            ValueError: wrong shape, no pixels, NaN, or values outside [0, 1].
        """
        image = check_image(image)
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
        result = self._degrade(image, rng)
        return np.clip(result, 0, 1, dtype=np.float32)

    @abstractmethod
    def _degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The degraded image, not yet clipped; must not write into ``image``."""

    @property
    def margin(self) -> int:
        """Pixels around a crop that its result depends on; 0 where every pixel stands alone."""
        return 0

    @classmethod
    def parameters(cls) -> dict[str, Number | Word]:
        """What is allowed for each parameter, by name."""
        return _parameters(cls)

    @classmethod
    def defaults(cls) -> dict[str, Setting]:
        """The parameters' usual values by name, as a user would write them."""
        return {
            field.name: field.default for field in dataclasses.fields(cls) if field.name in cls.parameters()
        }

    def draw(self, key: str, rng: np.random.Generator) -> float:
        """The numeric parameter ``key`` for one image."""
        return float(getattr(self, key).draw(rng))

    def draw_word(self, key: str, rng: np.random.Generator) -> str:
        """The word parameter ``key`` for one image."""
        return str(getattr(self, key).draw(rng))

    def largest(self, key: str) -> float:
        """The greatest value that the numeric parameter ``key`` can be drawn as."""
        value = getattr(self, key)
        return float(value.high if isinstance(value, Range) else max(value.options))

    def __str__(self) -> str:
        """The specification that :func:`cpl.degradations.create` makes this object from."""
        settings = ",".join(f"{key}={getattr(self, key)}" for key in self.parameters())
        return f"{self.name}:{settings}" if settings else self.name


@functools.cache
def _parameters(kind: type[Degradation]) -> dict[str, Number | Word]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(kind)}


def check_image(image: Any) -> np.ndarray:
    """``image`` as float32 [H, W, 3] in [0, 1], or an error that says what it is instead."""
    if not isinstance(image, np.ndarray) or not np.issubdtype(image.dtype, np.floating):
        kind = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"image must be a float NumPy array in [0, 1], got {kind}; divide 8-bit values by 255"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be [H, W, 3], got shape {list(image.shape)}; repeat a grey channel 3 times"
        )
    if 0 in image.shape:
        raise ValueError(f"image has no pixels: shape {list(image.shape)}")
    low, high = float(image.min()), float(image.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # written so that NaN fails
        raise ValueError(f"image must lie in [0, 1], it spans [{low:g}, {high:g}]; scale or clean it first")
    return image.astype(np.float32, copy=False)
