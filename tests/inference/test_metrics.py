"""PSNR and SSIM: by hand where a hand can compute them, by scikit-image elsewhere."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("skimage", reason="metrics need the extra [train]")
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cpl.inference.metrics import luma, psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random((24, 31, 3), dtype=np.float32)
    return np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1).astype(np.float32), target


def test_psnr_by_hand() -> None:
    target = np.full((8, 8, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0)  # MSE 0.01
    only_red = target.copy()
    only_red[..., 0] += 0.1
    assert psnr(only_red, target) == pytest.approx(20 + 10 * math.log10(3))
    # Y moves by 65.481/255 of the red step.
    assert psnr(only_red, target, "y") == pytest.approx(-20 * math.log10(0.1 * 65.481 / 255))


def test_a_hair_of_rounding_is_clipped_and_nothing_is_rounded() -> None:
    target = np.ones((8, 8, 3))
    assert psnr(target * 1.0009, target) == math.inf
    assert psnr(target - 1.0009, target * 0) == math.inf
    # A difference far below one 8-bit step still counts.
    assert psnr(target - 1e-4, target) == pytest.approx(80.0)


def test_equal_to_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    restored, target = pair
    a, b = restored.astype(np.float64), target.astype(np.float64)
    assert psnr(restored, target) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-12)
    assert ssim(restored, target) == pytest.approx(
        structural_similarity(b, a, data_range=1, channel_axis=2), abs=1e-12
    )
    ya, yb = (rgb2ycbcr(x)[..., 0] / 255 for x in (a, b))
    np.testing.assert_allclose(luma(a), ya, atol=1e-12)
    assert psnr(restored, target, "y") == pytest.approx(
        peak_signal_noise_ratio(yb, ya, data_range=1), abs=1e-9
    )
    assert ssim(restored, target, "y") == pytest.approx(structural_similarity(yb, ya, data_range=1), abs=1e-9)


def test_identical_images_without_a_warning(pair: tuple[np.ndarray, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psnr(pair[1], pair[1]) == math.inf
        assert ssim(pair[1], pair[1]) == pytest.approx(1.0)


def test_too_small_for_ssim() -> None:
    image = np.zeros((6, 100, 3))
    assert math.isnan(ssim(image, image))
    assert ssim(np.zeros((7, 7, 3)), np.zeros((7, 7, 3))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("restored", "target", "channel", "words"),
    [
        (np.zeros((8, 8, 3)), np.zeros((8, 9, 3)), "rgb", r"\(8, 9, 3\)"),
        (np.zeros((8, 8)), np.zeros((8, 8)), "rgb", r"\(8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3)), "rgb", "uint8"),
        (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 3)), "rgb", "NaN"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8, 3)), "lab", "lab"),
    ],
)
def test_bad_input(restored: np.ndarray, target: np.ndarray, channel: str, words: str) -> None:
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=words):
            metric(restored, target, channel)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channel", ["rgb", "y"])
@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0, 255.0), "must lie in [0, 1], got values from 0 to 255. Divide by the largest value"),
        ((0.0, 1.01), "must lie in [0, 1], got values from 0 to 1.01"),
        ((-1.0, 1.0), "must lie in [0, 1], got values from -1 to 1. Divide"),
        ((0.5, math.nan), "must be finite, got NaN or infinity."),
        ((0.5, -math.inf), "must be finite, got NaN or infinity."),
    ],
)
def test_values_that_are_not_in_the_range_are_refused(dtype, channel, metric, side, values, words) -> None:
    """Clipped, a picture in 0..255 is all white, and the PSNR of two such is infinite."""
    image = np.full((8, 8, 3), 0.5, dtype)
    bad = image.copy()
    bad[0, 0, 0], bad[-1, -1, -1] = values
    arguments = [image, image]
    arguments[side] = bad
    words = words.replace("1.01", f"{float(dtype(1.01)):.4g}")
    with pytest.raises(ValueError, match=re.escape(f"{('restored', 'target')[side]} {words}")):
        metric(*arguments, channel)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, bool, np.complex64])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_float_is_refused_beside_a_float(dtype, side) -> None:
    arguments = [np.full((8, 8, 3), 0.5), np.full((8, 8, 3), 0.5)]
    arguments[side] = np.ones((8, 8, 3), dtype)
    words = f"{('restored', 'target')[side]} must be a float array [H, W, 3] in [0, 1], got {np.dtype(dtype)}"
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=re.escape(words)):
            metric(*arguments)


def test_float_types_may_differ(pair: tuple[np.ndarray, np.ndarray]) -> None:
    restored, target = pair
    same = psnr(restored.astype(np.float16), target.astype(np.float64))
    assert same == pytest.approx(psnr(restored.astype(np.float16).astype(np.float32), target))
