"""The bundled photographs: there, real, split without overlap, documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpl.data import bundled_photos, photos
from cpl.errors import CplError, MissingExtra

DOCS = Path(__file__).parents[2] / "docs"


def test_splits() -> None:
    train, test = ({p.name for p in bundled_photos(split)} for split in ("train", "test"))
    assert test == {"coffee", "flower"}
    assert not train & test
    assert {"motorcycle_left", "motorcycle_right"} <= train  # one scene, one side
    assert train | test == {p.name for p in bundled_photos("all")}


def test_they_are_photographs() -> None:
    for photo in bundled_photos("all"):
        height, width, channels = photo.image.shape
        assert (min(height, width) >= 300, channels) == (True, 3)
        assert photo.image.dtype == np.float32
        assert 0 <= photo.image.min() < 0.1
        assert 0.8 < photo.image.max() <= 1
        assert len(np.unique(photo.image)) > 200  # a drawing has few levels
        with pytest.raises(ValueError, match="read-only"):
            photo.image[0, 0, 0] = 0


def test_each_is_documented_with_origin_and_licence() -> None:
    page = (DOCS / "photos.md").read_text(encoding="utf-8")
    for photo in bundled_photos("all"):
        assert photo.origin
        assert photo.licence
        assert photo.name in page
        for word in photo.origin.split():
            if word.startswith("https://"):
                assert word in page


def test_smaller_photographs() -> None:
    for whole, half in zip(bundled_photos(), bundled_photos(scale=0.5), strict=True):
        height, width = whole.image.shape[:2]
        assert half.image.shape == (height // 2, width // 2, 3)
        assert half.image.dtype == np.float32
        assert 0 <= half.image.min() < half.image.max() <= 1
        # The same picture: as bright within a grey level of 8 bits, and never far from the mean of its 2x2 pixels.
        assert abs(half.image.mean() - whole.image.mean()) < 1 / 255
        pairs = whole.image[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, 3)
        # Lanczos is sharper than a mean: 0.04 on the leaves of china, where a pixel of shift makes it 0.09.
        assert np.sqrt(np.mean((half.image - pairs.mean((1, 3))) ** 2)) < 0.05


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_a_scale_out_of_range_is_named(scale: float) -> None:
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {scale}"):
        bundled_photos("test", scale)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="one of train, test, all, got 'validation'"):
        bundled_photos("validation")


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"no_such_package: pip install 'cpl-kernels\[train\]'"):
        photos.bundled_path("no_such_package", "a.png")


def test_missing_file_says_where() -> None:
    with pytest.raises(CplError, match=r"skimage/data/none\.png: missing.*reinstall"):
        photos.bundled_path("skimage", "data/none.png")
