"""restore(): every kind of image comes back as the same kind, with the values the model gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.inference.load import pick_device
from cpl.inference.restore import RestoreError, restore

SHAPE = (7, 10)


class Scale(nn.Module):
    """Stands in for a network: multiplies by its one weight, and notes how it was called."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.dropout = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[1] == 3
        self.was_training, self.autocast = self.training, torch.is_autocast_enabled("cpu")
        return self.dropout(image) * self.factor


def test_float_tensors() -> None:
    model = Scale(0.5).train()
    for shape in ((3, *SHAPE), (2, 3, *SHAPE), (3, 1, 1)):
        for dtype in (torch.float32, torch.float64, torch.float16):
            image = torch.rand(shape).to(dtype)
            out = restore(model, image)
            assert out.dtype == dtype
            torch.testing.assert_close(out, (image.float() * 0.5).to(dtype))
    assert not model.was_training
    assert model.training  # put back
    assert model.dropout.training
    (out.requires_grad_() * 2).sum().backward()  # not an inference tensor
    strided = torch.rand(*SHAPE, 3).permute(2, 0, 1)
    torch.testing.assert_close(restore(model, strided), strided * 0.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_arrays(dtype: type) -> None:
    rng = np.random.default_rng(0)
    integer = np.issubdtype(dtype, np.integer)
    top = np.iinfo(dtype).max if integer else 1
    image = (rng.integers(0, top + 1, (*SHAPE, 3)) if integer else rng.random((*SHAPE, 3))).astype(dtype)
    before = image.copy()
    same = restore(Scale(1.0), image)
    assert same.dtype == dtype
    assert isinstance(same, np.ndarray)
    np.testing.assert_allclose(same, image, rtol=1e-6)  # integers: bit for bit
    half = restore(Scale(0.5), image)
    np.testing.assert_allclose(half, image.astype(np.float64) * 0.5, atol=0.51 if integer else 1e-3)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(
        restore(Scale(3.0), image), np.clip(image.astype(np.float64) * 3, 0, top).astype(dtype)
    ) if integer else None
    assert restore(Scale(3.0), image).max() <= top


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "P", "1"])
def test_pil_images(mode: str) -> None:
    pil = pytest.importorskip("PIL.Image", reason="PIL images need the extra [restore]")
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = pil.fromarray(rng.integers(0, 65536, SHAPE).astype(np.uint16))
    else:
        image = pil.fromarray(rng.integers(0, 256, (*SHAPE, 4)).astype(np.uint8)).convert(mode)
    image.info["icc_profile"] = b"profile"
    out = restore(Scale(1.0), image)
    expected = image.convert({"P": "RGB", "1": "L"}.get(mode, mode)) if mode in ("P", "1") else image
    assert (out.mode, out.size) == (expected.mode, image.size)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))
    assert out.info["icc_profile"] == b"profile"
    dark = restore(Scale(0.0), image)
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(np.asarray(dark)[..., -1], np.asarray(image)[..., -1])
        assert not np.asarray(dark)[..., :-1].any()
    else:
        assert not np.asarray(dark).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_colour_key_of_a_pil_image_becomes_alpha(mode: str) -> None:
    """As read from a PNG with tRNS; the key itself would make other pixels of the result transparent."""
    pil = pytest.importorskip("PIL.Image", reason="PIL images need the extra [restore]")
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    image = pil.fromarray(pixels).convert(mode)
    key = image.getpixel((3, 2))
    image.info.update(transparency=key, icc_profile=b"profile")
    out = restore(Scale(0.5), image)
    assert out.mode == ("LA" if mode in ("L", "1") else "RGBA")
    assert out.info == {"icc_profile": b"profile"}
    transparent = np.asarray(out)[..., -1] == 0
    own = np.asarray(image)
    expected = (own == np.array(key, bool if mode == "1" else None)).reshape(*SHAPE, -1).all(-1)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(transparent, expected)
    assert image.info["transparency"] == key  # the caller's image is as it was


def test_a_colour_key_that_has_no_alpha_mode_is_refused() -> None:
    pil = pytest.importorskip("PIL.Image", reason="PIL images need the extra [restore]")
    image = pil.fromarray(np.zeros(SHAPE, np.uint16))
    image.info["transparency"] = 0
    with pytest.raises(TypeError, match="del image.info"):
        restore(Scale(), image)


def test_bf16_is_autocast() -> None:
    model = Scale(0.3)
    image = torch.rand(3, *SHAPE)
    assert restore(model, image, dtype="bf16").dtype == torch.float32
    assert model.autocast
    restore(model, image)
    assert not model.autocast
    with pytest.raises(ValueError, match="fp16"):
        restore(model, image, dtype="fp16")


def test_model_in_double() -> None:
    image = torch.rand(3, *SHAPE)
    torch.testing.assert_close(restore(Scale(0.5).double(), image), image * 0.5)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("photo.jpg", TypeError, "str"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(4, 4, 4), ValueError, r"\(4, 4, 4\)"),
        (torch.zeros(3, 0, 4), ValueError, r"\(3, 0, 4\)"),
        (torch.full((3, 4, 4), 200.0), ValueError, "200"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "NaN"),
        (np.zeros((4, 4)), ValueError, r"\(4, 4\)"),
        (np.zeros((4, 4, 3), np.int32), TypeError, "int32"),
        (np.zeros((4, 4, 3)) - 0.5, ValueError, "-0.5"),
    ],
)
def test_bad_images_are_named(image: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        restore(Scale(), image)


def test_failures_of_the_model_are_named() -> None:
    image = torch.rand(3, *SHAPE)
    with pytest.raises(RestoreError, match="10x7"):
        restore(Scale(float("nan")), image)

    class Hungry(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.empty(2**60)  # torch's own out-of-memory error, not an imitation

    with pytest.raises(RestoreError, match="not enough memory on cpu for a 10x7 image"):
        restore(Hungry(), image)

    class Shrinks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., 1:]

    with pytest.raises(ValueError, match=r"\(1, 3, 7, 9\)"):
        restore(Shrinks(), image)

    class Broken(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError("a fault of another kind")

    with pytest.raises(RuntimeError, match="another kind"):
        restore(Broken(), image)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("gpu", "cuda:99", "meta", "xla", torch.device("meta")):
        with pytest.raises(CplError, match=str(device).split(":")[0]):
            pick_device(device)
