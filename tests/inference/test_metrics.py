"""PSNR and SSIM: by hand where a hand can compute them, by scikit-image elsewhere."""

from __future__ import annotations

import math
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
    return (target + rng.normal(0, 0.05, target.shape)).astype(np.float32), target


def test_psnr_by_hand() -> None:
    target = np.full((8, 8, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0)  # MSE 0.01
    only_red = target.copy()
    only_red[..., 0] += 0.1
    assert psnr(only_red, target) == pytest.approx(20 + 10 * math.log10(3))
    # Y moves by 65.481/255 of the red step.
    assert psnr(only_red, target, "y") == pytest.approx(-20 * math.log10(0.1 * 65.481 / 255))


def test_clipped_but_not_rounded() -> None:
    target = np.ones((8, 8, 3))
    assert psnr(target * 1.7, target) == math.inf
    # A difference far below one 8-bit step still counts.
    assert psnr(target - 1e-4, target) == pytest.approx(80.0)


def test_equal_to_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    restored, target = pair
    a, b = np.clip(restored, 0, 1).astype(np.float64), target.astype(np.float64)
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
