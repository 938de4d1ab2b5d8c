"""Convolution with a small kernel, and kernels that are drawn with anti-aliasing."""

from __future__ import annotations

import numpy as np

from cpl.extras import require


def pad_by_reflection(image: np.ndarray, margin: int) -> np.ndarray:
    """``image`` [H, W, ...] with ``margin`` mirrored pixels on all four sides, whatever its size."""
    widths = [(margin, margin), (margin, margin)] + [(0, 0)] * (image.ndim - 2)
    return np.pad(image, widths, mode="reflect")  # repeats the reflection for images thinner than the margin


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """``image`` [H, W, ...] convolved with ``kernel`` [k, k] where they overlap wholly: [H-k+1, W-k+1, ...].

    By FFT: a 15 x 15 kernel on a 160 x 160 crop costs a tenth of the direct sum.
    """
    kernel = kernel.astype(np.float32).reshape(kernel.shape + (1,) * (image.ndim - 2))
    return require("scipy.signal").fftconvolve(image, kernel, mode="valid", axes=(0, 1))


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """``image`` [H, W, 3] convolved with an odd, square kernel that sums to 1; the borders are mirrored."""
    return convolve(pad_by_reflection(image, kernel.shape[0] // 2), kernel)


def splat(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """Points at real positions from the centre, each shared among its four pixels: float64 [side, side]."""
    canvas = np.zeros((side, side))
    rows, columns = rows + side // 2, columns + side // 2
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    for row, share_row in ((top, 1 - down), (top + 1, down)):
        for column, share_column in ((left, 1 - right), (left + 1, right)):
            np.add.at(canvas, (row, column), weights * share_row * share_column)
    return canvas


def disc(radius: float, supersampling: int = 8) -> np.ndarray:
    """A disc of ``radius`` pixels, each pixel weighted by how much of it is covered; sums to 1.

    A radius of 0 is the identity.
    """
    half = int(np.ceil(radius))
    fine = (np.arange((2 * half + 1) * supersampling) + 0.5) / supersampling - half - 0.5
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).astype(np.float64)
    side = 2 * half + 1
    kernel = inside.reshape(side, supersampling, side, supersampling).sum(axis=(1, 3))
    if kernel.sum() == 0:  # smaller than the sampling grid: a point
        kernel[half, half] = 1
    return kernel / kernel.sum()
