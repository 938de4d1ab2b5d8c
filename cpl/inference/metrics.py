"""PSNR and SSIM as the field computes them: scikit-image's, data range 1, no 8-bit rounding."""

from __future__ import annotations

import math

import numpy as np

from cpl.extras import require

CHANNELS = ("rgb", "y")
SSIM_WINDOW = 7  # scikit-image's default
_RANGE_SLACK = (
    1e-3  # as cpl.restore: rounding of whatever made the image; a picture in 0..255 is far beyond it
)


def psnr(restored: np.ndarray, target: np.ndarray, channel: str = "rgb") -> float:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE), in dB.

    Args:
        restored, target: float [H, W, 3] in [0, 1], of any float type each; not rounded. Up to 1e-3 beyond
            that range is rounding and clipped. More is refused: a picture in 0..255 would be all white, and what a
            network puts out beyond the range is clipped by cpl.restore, or by the caller.
        channel: "rgb" (MSE over all three channels) or "y" (BT.601 luma, see `luma`).

    Returns:
        dB; infinity when the images are identical.

    Raises:
        ValueError: shapes differ or are not [H, W, 3]; values that are not floats, not finite or not in [0, 1];
            unknown channel.
    """
    restored, target = _prepared(restored, target, channel)
    if np.array_equal(restored, target):
        return math.inf  # scikit-image warns of a division by zero here
    metrics = require("skimage.metrics")
    return float(metrics.peak_signal_noise_ratio(target, restored, data_range=1.0))


def ssim(restored: np.ndarray, target: np.ndarray, channel: str = "rgb") -> float:
    """Structural similarity (Wang et al. 2004), scikit-image's: uniform 7x7 window, mean over channels.

    Arguments as `psnr`.

    Returns:
        1 for identical images; NaN when a side is shorter than the 7-pixel window.
    """
    restored, target = _prepared(restored, target, channel)
    if min(restored.shape[:2]) < SSIM_WINDOW:
        return math.nan
    metrics = require("skimage.metrics")
    axis = 2 if channel == "rgb" else None
    return float(
        metrics.structural_similarity(
            target, restored, data_range=1.0, channel_axis=axis, win_size=SSIM_WINDOW
        )
    )


def luma(rgb: np.ndarray) -> np.ndarray:
    """BT.601 Y of [H, W, 3] in [0, 1], with its footroom: (16 + 65.481 R + 128.553 G + 24.966 B) / 255.

    The range is [16/255, 235/255] and the data range stays 1, which is what published Y-channel
    results of this field use (MATLAB's rgb2ycbcr).
    """
    return (rgb @ np.array([65.481, 128.553, 24.966]) + 16.0) / 255.0


def _prepared(restored: np.ndarray, target: np.ndarray, channel: str) -> tuple[np.ndarray, np.ndarray]:
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, got {channel!r}")
    pair = [checked("restored", restored), checked("target", target)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"restored is {pair[0].shape}, target is {pair[1].shape}; they must be of one size")
    if channel == "y":
        pair = [luma(image) for image in pair]
    return pair[0], pair[1]


def checked(name: str, image: np.ndarray) -> np.ndarray:
    """``image`` as float64 [H, W, 3], within [0, 1].

    Raises:
        ValueError: it is something else; the message calls it ``name``.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype.kind != "f":
        remedy = f" Divide by {np.iinfo(image.dtype).max}." if image.dtype.kind in "iu" else ""
        raise ValueError(
            f"{name} must be a float array [H, W, 3] in [0, 1], got {image.dtype} {image.shape}.{remedy}"
        )
    image = image.astype(np.float64)
    if not np.isfinite(image).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity. Look for where they come from.")
    low, high = float(image.min()), float(image.max())
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}. "
            "Divide by the largest value of its kind (255 for 8 bits), or clip it."
        )
    return np.clip(image, 0.0, 1.0)
