"""Each degradation does what its formula says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import convolve as direct_convolution

from cpl import degradations
from cpl.degradations.convolution import blur, disc
from cpl.degradations.haze import depth_field
from cpl.degradations.light import to_linear, to_srgb
from cpl.degradations.motion_blur import motion_kernel
from cpl.degradations.rain import streak_kernel
from cpl.degradations.snow import flake_kernel


def flat(value: float, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_noise_has_the_deviation_asked_for(sigma: int) -> None:
    noise = degradations.Noise(sigma=sigma)(flat(0.5, 200, 200), rng()) - 0.5
    # Of 120000 samples the deviation is known to 0.2 %; clipping at 2.5 sigma takes 1.2 % off sigma 50.
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


def test_sigma_zero_changes_nothing() -> None:
    image = rng().random((9, 9, 3), dtype=np.float32)
    assert np.array_equal(degradations.Noise(sigma=0)(image, rng()), image)


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
@pytest.mark.parametrize("bend", [0, 60, -200])
@pytest.mark.parametrize("length", [0, 0.3, 7.5, 30])
def test_motion_kernel_is_a_centred_weight(length: float, angle: float, bend: float) -> None:
    kernel = motion_kernel(length, angle, bend)
    side = kernel.shape[0]
    grid = np.arange(side) - side // 2
    assert kernel.shape == (side, side)
    assert side % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1)
    assert (kernel.sum(1) * grid).sum() == pytest.approx(0, abs=1e-9)
    assert (kernel.sum(0) * grid).sum() == pytest.approx(0, abs=1e-9)
    degrade = degradations.MotionBlur(length=length, angle=angle, bend=bend)
    assert side // 2 <= degrade.margin + 1
    assert degrade.kernel(rng()) == pytest.approx(kernel)


def test_motion_kernel_points_where_it_should() -> None:
    across, up = motion_kernel(11, 0, 0), motion_kernel(11, 90, 0)
    assert np.allclose(across, up.T, atol=1e-9)
    middle = across.shape[0] // 2
    assert across[middle].sum() == pytest.approx(1)  # a horizontal line keeps to its row
    # 11 pixels long: a uniform density of that length has variance 121 / 12, and bilinear shares add some
    grid = np.arange(across.shape[0]) - middle
    assert (across[middle] * grid**2).sum() == pytest.approx(121 / 12, rel=0.05)
    rising = motion_kernel(15, 45, 0)
    half = rising.shape[0] // 2
    assert rising[:half, half + 1 :].sum() > 0.4  # 45 degrees anticlockwise: from below left to above right
    assert rising[:half, :half].sum() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("radius", [0, 0.05, 0.5, 1.5, 3, 7.25])
def test_disc_has_the_second_moment_of_a_disc(radius: float) -> None:
    kernel = disc(radius)
    grid = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel.T)
    assert np.allclose(kernel, kernel[::-1])
    if radius >= 3:  # a disc's variance along an axis is r^2 / 4, and that of the pixels it is binned to 1/12
        assert (kernel.sum(0) * grid**2).sum() == pytest.approx(radius**2 / 4 + 1 / 12, abs=0.03)


def test_blur_by_fft_is_the_direct_sum() -> None:
    image, kernel = rng().random((21, 30, 3), dtype=np.float32), rng(1).random((7, 7))
    kernel /= kernel.sum()
    expected = np.stack([direct_convolution(image[..., c], kernel, mode="mirror") for c in range(3)], axis=2)
    np.testing.assert_allclose(blur(image, kernel), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["motion_blur", "defocus_blur", "blur", "blur:light=linear"])
def test_blur_keeps_a_constant_and_smooths_the_rest(name: str) -> None:
    degrade = degradations.create(name)
    np.testing.assert_allclose(degrade(flat(0.3), rng()), 0.3, atol=1e-5)
    image = rng().random((64, 64, 3), dtype=np.float32)
    blurred = degrade(image, rng())
    light = (
        to_linear if "linear" in name else np.asarray
    )  # what is averaged keeps its mean but at the borders
    assert light(blurred).mean() == pytest.approx(light(image).mean(), abs=0.02)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.6 * np.abs(np.diff(image, axis=0)).mean()


def test_linear_light_blur_spreads_highlights_further() -> None:
    spot = flat(0.0)
    spot[32, 32] = 1
    stored, linear = (
        degradations.DefocusBlur(radius=3, light=light)(spot, rng()) for light in ("srgb", "linear")
    )
    assert linear[32, 32, 0] > 3 * stored[32, 32, 0]


def test_kind_of_blur() -> None:
    image = rng().random((40, 40, 3), dtype=np.float32)
    only = degradations.create("blur:kind=defocus,radius=3")
    assert np.array_equal(only(image, rng()), degradations.create("defocus_blur:radius=3")(image, rng()))
    assert only.margin == 3


def test_haze_tends_to_the_airlight() -> None:
    image = rng().random((50, 70, 3), dtype=np.float32)
    distances = [
        np.abs(degradations.Haze(beta=beta, airlight=0.8, tint=0)(image, rng()) - 0.8).max()
        for beta in (0.1, 1, 5, 1000)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6
    assert np.allclose(degradations.Haze(beta=0)(image, rng()), image, atol=1e-6)


def test_haze_is_the_scattering_model_with_one_depth_for_all_colours() -> None:
    hazy = [degradations.Haze(beta=1.5, airlight=0.9, tint=0)(flat(v, 90, 60), rng(4)) for v in (0.1, 0.6)]
    transmission = (hazy[1] - hazy[0]) / 0.5  # A cancels
    assert transmission.max() <= np.exp(-1.5 * 0.2) + 1e-5  # depth in [0.2, 1]
    assert transmission.min() >= np.exp(-1.5) - 1e-5
    np.testing.assert_allclose(hazy[0], 0.1 * transmission + 0.9 * (1 - transmission), atol=1e-5)
    assert np.ptp(transmission, axis=2).max() < 1e-5


@pytest.mark.parametrize("size", [(128, 128), (427, 640), (1, 300)])
def test_depth_is_smooth_and_used(size: tuple[int, int]) -> None:
    depths = [depth_field(*size, rng(seed), slope=0.5, scene=400) for seed in range(4)]
    for depth in depths:
        assert depth.shape == size
        assert depth.min() >= 0.2
        assert depth.max() <= 1
        for axis in (0, 1):
            if size[axis] > 1:  # no step of more than a fiftieth between neighbours
                assert np.abs(np.diff(depth, axis=axis)).max() < 0.02
    spread = max(d.max() for d in depths) - min(d.min() for d in depths)
    assert spread > 0.2


def test_distance_grows_upwards() -> None:
    depth = depth_field(400, 300, rng(), slope=1, scene=400)
    assert depth[0, 0] == pytest.approx(1, abs=0.01)
    assert depth[-1, 0] == pytest.approx(0.2, abs=0.01)


def test_srgb_curve_and_back() -> None:
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=2e-6)
    assert to_linear(np.float32([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)  # IEC 61966-2-1
    assert to_linear(values).dtype == to_srgb(values).dtype == np.float32


def test_low_light_scales_linear_light() -> None:
    image = rng().random((30, 30, 3), dtype=np.float32)
    dark = degradations.LowLight(scale=0.1, gamma=1, photons=0, read=0)(image, rng())
    np.testing.assert_allclose(to_linear(dark), 0.1 * to_linear(image), atol=1e-5)
    crushed = degradations.LowLight(scale=0.1, gamma=1.5, photons=0, read=0)(image, rng())
    np.testing.assert_allclose(to_linear(crushed), 0.1 * to_linear(image) ** 1.5, atol=1e-5)
    for seed in range(5):  # the usual parameters too
        assert degradations.create("low_light")(image, rng(seed)).mean() < 0.6 * image.mean()


def test_low_light_noise_is_shot_and_read_noise() -> None:
    degrade = degradations.LowLight(scale=0.5, gamma=1, photons=2000, read=0.01)
    light = to_linear(degrade(flat(0.7, 200, 200), rng()))
    mean = 0.5 * float(to_linear(np.float32([0.7]))[0])
    assert light.mean() == pytest.approx(mean, rel=0.01)
    assert light.std() == pytest.approx(np.sqrt(mean / 2000 + 0.01**2), rel=0.03)


def test_streak_lies_along_its_angle() -> None:
    upright = streak_kernel(20, 1.5, 0)
    half = upright.shape[0] // 2
    assert upright.max() == 1
    assert upright.sum(1).std() < upright.sum(0).std()  # its mass is spread over rows, not over columns
    tilted = streak_kernel(20, 1.5, 30)
    half = tilted.shape[0] // 2
    assert (
        tilted[half + 1 :, half + 1 :].sum() > 5 * tilted[half + 1 :, :half].sum()
    )  # lower end to the right
    assert streak_kernel(30, 1.5, 0).sum() > upright.sum()
    assert streak_kernel(20, 3, 0).sum() > upright.sum()


def test_rain_brightens_and_is_denser_when_asked() -> None:
    def rained(density: float) -> np.ndarray:
        degrade = degradations.Rain(density=density, blend="additive", strength=0.5, length=20, width=1.5)
        return degrade(flat(0.2, 100, 100), rng()) - 0.2

    few, many = rained(2), rained(20)
    assert few.min() > -1e-6
    assert many.mean() > 5 * few.mean()
    assert np.ptp(many, axis=2).max() < 1e-6  # streaks are colourless
    assert np.allclose(rained(0), 0, atol=1e-6)


def test_screen_and_additive_differ_as_their_formulas() -> None:
    """From the same draws: on black both give the streaks, on grey the screen gives x + s - x s."""
    additive, screen = (degradations.Rain(blend=b, density=5) for b in ("additive", "screen"))
    streaks = additive(flat(0.0), rng())
    np.testing.assert_allclose(screen(flat(0.0), rng()), streaks, atol=1e-6)
    np.testing.assert_allclose(screen(flat(0.4), rng()), 0.4 + streaks * 0.6, atol=1e-6)


def test_rain_reaches_every_border() -> None:
    rain = np.mean([degradations.Rain()(flat(0.0, 48, 48), rng(s)).mean(2) for s in range(60)], axis=0)
    sides = [rain[:4].mean(), rain[-4:].mean(), rain[:, :4].mean(), rain[:, -4:].mean()]
    assert min(sides) > 0.6 * rain.mean()  # streaks also enter from outside the picture


def test_snow_covers_towards_white() -> None:
    dark, light = (degradations.Snow(density=8)(flat(v, 100, 100), rng()) for v in (0.1, 0.5))
    assert dark.min() >= 0.1 - 1e-6
    opacity = 1 - (light - dark) / 0.4  # c cancels
    assert 0.005 < opacity.mean() < 0.6
    assert opacity.max() > 0.7
    assert degradations.Snow(density=0)(flat(0.1), rng()).max() == pytest.approx(0.1)
    more = degradations.Snow(density=30)(flat(0.1, 100, 100), rng())
    assert more.mean() > 1.5 * dark.mean()


def test_flakes_differ_and_grow() -> None:
    first, second = (flake_kernel(10, 0, rng(s)) for s in (0, 1))
    assert first.shape == second.shape
    assert not np.allclose(first, second)
    assert first.max() == pytest.approx(1)
    assert flake_kernel(20, 0, rng()).sum() > 2 * first.sum()


def test_jpeg_quality() -> None:
    image = np.kron(rng().random((8, 8, 3)), np.ones((8, 8, 1))).astype(np.float32)
    image = 0.8 * image + 0.2 * rng(1).random((64, 64, 3), dtype=np.float32)
    coders = [degradations.Jpeg(quality=q, chroma="4:4:4") for q in (5, 30, 95)]
    errors = [np.mean((coder(image, rng()) - image) ** 2) for coder in coders]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-4  # saturated colours and their noise leave the range of YCbCr: 33 dB
    result = degradations.Jpeg(quality=50)(image, rng()) * 255
    np.testing.assert_allclose(result, np.rint(result), atol=1e-4)  # what was decoded has 8 bits
