"""What holds for every degradation: a function of image and generator, any size, [0, 1], float32."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cpl import degradations

ALL = [*degradations.names(), "low_light+haze"]
# One pixel, thin ones, an odd size smaller than every kernel and one larger than most.
SIZES = [(1, 1), (1, 23), (31, 1), (2, 3), (17, 23), (40, 57)]


def texture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(99).random((height, width, 3), dtype=np.float32)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", ALL)
def test_shape_type_and_range(name: str, size: tuple[int, int]) -> None:
    image = texture(*size)
    before = image.copy()
    result = degradations.create(name)(image, np.random.default_rng(1))
    assert result.shape == image.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.array_equal(image, before)  # the input is the target of training: never written into
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize("name", ALL)
def test_the_generator_alone_decides(name: str) -> None:
    image, degrade = texture(40, 57), degradations.create(name)
    first = degrade(image, np.random.default_rng(1))
    degrade(image, np.random.default_rng(2))  # leaves no state behind
    assert np.array_equal(first, degrade(image, np.random.default_rng(1)))
    assert np.array_equal(first, pickle.loads(pickle.dumps(degrade))(image, np.random.default_rng(1)))
    assert not np.array_equal(first, degrade(image, np.random.default_rng(2)))


@pytest.mark.parametrize("name", ALL)
def test_every_image_gets_draws_of_its_own(name: str) -> None:
    image, degrade, rng = texture(40, 57), degradations.create(name), np.random.default_rng(1)
    assert not np.array_equal(degrade(image, rng), degrade(image, rng))


@pytest.mark.parametrize("name", ALL)
def test_it_gets_worse(name: str) -> None:
    smooth = np.stack([np.tile(np.linspace(0.2, 0.8, 57, dtype=np.float32), (40, 1))] * 3, axis=2)
    image = 0.7 * smooth + 0.3 * texture(40, 57)
    result = degradations.create(name)(image, np.random.default_rng(1))
    assert np.mean((result - image) ** 2) > 1e-4  # below 40 dB


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), TypeError, "uint8.*divide 8-bit values by 255"),
        ([[0.5]], TypeError, "list"),
        (np.zeros((4, 4), np.float32), ValueError, r"\[4, 4\].*repeat a grey channel"),
        (np.zeros((3, 4, 4), np.float32), ValueError, r"\[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.float32), ValueError, "no pixels"),
        (np.full((4, 4, 3), 128.0, np.float32), ValueError, r"\[128, 128\].*scale"),
        (np.full((4, 4, 3), np.nan, np.float32), ValueError, "nan"),
    ],
)
def test_what_is_no_image_is_refused(image: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        degradations.create("noise")(image, np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_seed_is_no_generator() -> None:
    with pytest.raises(TypeError, match=r"numpy.random.Generator, got int"):
        degradations.create("noise")(texture(4, 4), 0)  # type: ignore[arg-type]


def test_a_composition_is_its_parts_in_order() -> None:
    image, rng = texture(20, 20), np.random.default_rng(5)
    dark = degradations.create("low_light")(image, rng)
    both = degradations.create("haze")(dark, rng)
    assert np.array_equal(degradations.create("low_light+haze")(image, np.random.default_rng(5)), both)
    other = degradations.create("haze+low_light")(image, np.random.default_rng(5))
    assert not np.array_equal(both, other)
    assert degradations.create("motion_blur:length=9+defocus_blur:radius=3").margin == 10 + 3


@pytest.mark.parametrize("name", ["motion_blur", "defocus_blur", "blur", "blur+defocus_blur"])
def test_the_margin_is_all_that_a_crop_depends_on(name: str) -> None:
    """Pixels beyond the margin may change without changing the crop's result."""
    degrade = degradations.create(name)
    margin, side = degrade.margin, 12
    one = texture(side + 2 * margin, side + 2 * margin)
    # the same within the margin, and another picture further out
    other = np.random.default_rng(7).random((one.shape[0] + 20, one.shape[1] + 20, 3), dtype=np.float32)
    other[10:-10, 10:-10] = one
    for seed in range(5):
        inner = degrade(one, np.random.default_rng(seed))[margin:-margin, margin:-margin]
        shift = margin + 10
        outer = degrade(other, np.random.default_rng(seed))[shift:-shift, shift:-shift]
        np.testing.assert_allclose(inner, outer, atol=2e-6)  # FFTs of two sizes round differently
