"""Stored (sRGB) values and linear light."""

from __future__ import annotations

import numpy as np


def to_linear(image: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] to linear intensities in [0, 1] (IEC 61966-2-1); float32 stays float32."""
    image = np.maximum(image, 0)
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear intensities to sRGB values (IEC 61966-2-1); what a sensor's noise made negative becomes 0."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
