"""Every kind of image file: what comes out is what went in, apart from the restored colours."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="reading images needs the extra [restore]")
pytest.importorskip("imagecodecs", reason="16-bit images need the extra [restore]")
import imagecodecs
import tifffile
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from cpl.images import ImageError, ImageFile, ImageWarning, codecs, read_image, write_image
from cpl.images.files import as_stored, upright

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HEIGHT, WIDTH = 13, 18  # not square, so that a wrong turn shows; odd, so that chroma subsampling would


def noise(channels: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return (
        np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    )


def exif_block(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0110] = "Camera Model"
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    return exif.tobytes()


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [
        (s, c)
        for s in ("png", "tif", "webp", "bmp", "ppm")
        for c in (1, 2, 3, 4)
        if s not in ("bmp", "ppm") or c in (1, 3)
    ],
)
def test_8_bit_comes_back_bit_for_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = noise(channels)
    source, copy = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    Image.fromarray(pixels).save(source, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    file = read_image(source)
    assert file.rgb.dtype == np.float32
    assert file.rgb.shape == (HEIGHT, WIDTH, 3)
    assert 0 <= file.rgb.min() < file.rgb.max() <= 1
    write_image(copy, file.rgb, file)
    with Image.open(source) as before, Image.open(copy) as after:
        assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


# Pillow, which has to open a file before its size can be trusted, knows no 16-bit grey TIFF with alpha.
@pytest.mark.parametrize(
    ("suffix", "channels"),
    [("png", 1), ("png", 2), ("png", 3), ("png", 4), ("tif", 1), ("tif", 3), ("tif", 4)],
)
def test_16_bit_comes_back_bit_for_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = noise(channels, 16)
    source, copy = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    if suffix == "png":
        source.write_bytes(imagecodecs.png_encode(pixels))
    else:
        tifffile.imwrite(source, pixels, photometric="rgb" if channels > 1 else None, compression="lzw")
    file = read_image(source)
    assert file.bits == 16
    assert file.grey == (channels < 3)
    write_image(copy, file.rgb, file)
    back = imagecodecs.png_decode(copy.read_bytes()) if suffix == "png" else tifffile.imread(copy)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, pixels)


def test_tiff_white_is_zero_and_big_endian(tmp_path: Path) -> None:
    grey, colour = noise(1, 16), noise(3, 16)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(
        np.rint(read_image(tmp_path / "a.tif").rgb[:, :, 0] * 65535), 65535.0 - grey
    )
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb", byteorder=">", compression="zlib")
    np.testing.assert_array_equal(np.rint(read_image(tmp_path / "b.tif").rgb * 65535), colour)


def test_netpbm_with_more_than_8_bits(tmp_path: Path) -> None:
    """Grey is refused, colour is read with 8 bits and says so; both name the way to keep the bits."""
    pixels = noise(3, 16).astype(">u2")
    header = f"\n# a comment\n{WIDTH} {HEIGHT}\n65535\n".encode()
    (tmp_path / "a.pgm").write_bytes(b"P5" + header + pixels[..., 0].tobytes())
    (tmp_path / "a.ppm").write_bytes(b"P6" + header + pixels.tobytes())
    with pytest.raises(ImageError, match=r"a\.pgm: .*more than 8 bits.*convert it to a 16-bit PNG"):
        read_image(tmp_path / "a.pgm")
    with pytest.warns(ImageWarning, match=r"a\.ppm .*more than 8 bits.*16-bit PNG"):
        file = read_image(tmp_path / "a.ppm")
    np.testing.assert_allclose(file.rgb, pixels / 65535, atol=0.003)


def test_jpeg_keeps_format_and_is_close(tmp_path: Path) -> None:
    ramp = np.stack(np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48)), -1)
    picture = Image.fromarray(np.dstack([ramp, ramp[..., :1][::-1]]).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=60, dpi=(300, 300), comment=b"hello", progressive=True)
    file = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", file.rgb, file)
    with Image.open(tmp_path / "b.jpg") as after:
        assert after.format == "JPEG"
        assert after.info["dpi"] == (300, 300)
        assert after.info["comment"] == b"hello"
        assert after.info.get("progressive")
        assert [layer[1:3] for layer in after.layer] == [(1, 1)] * 3  # 4:4:4: no chroma thrown away
        assert np.abs(np.asarray(after) / 255 - file.rgb).mean() < 0.004
    Image.fromarray(noise(1)).save(tmp_path / "grey.jpg")
    file = read_image(tmp_path / "grey.jpg")
    write_image(tmp_path / "grey2.jpg", file.rgb, file)
    with Image.open(tmp_path / "grey2.jpg") as after:
        assert after.mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_picture_for_the_model_only(tmp_path: Path, orientation: int) -> None:
    """The model's view is Pillow's own exif_transpose; the file on disk keeps its lie and its tag."""
    pixels = noise(3)
    for suffix in ("png", "webp", "tif"):
        source, copy = tmp_path / f"{orientation}.{suffix}", tmp_path / f"{orientation}b.{suffix}"
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        Image.fromarray(pixels).save(source, exif=exif_block(orientation), **options)
        with Image.open(source) as image:
            shown = np.asarray(ImageOps.exif_transpose(image))
        file = read_image(source)
        np.testing.assert_array_equal(np.rint(file.rgb * 255).astype(np.uint8), shown)
        write_image(copy, file.rgb, file)
        with Image.open(copy) as image:
            exif = image.getexif()
            assert exif.get(0x0112) == orientation
            assert exif[0x0110] == "Camera Model"
            assert exif.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
            np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), shown)
    np.testing.assert_array_equal(as_stored(upright(pixels, orientation), orientation), pixels)


def test_16_bit_orientation(tmp_path: Path) -> None:
    pixels = noise(3, 16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    source = codecs.encode_png(pixels, [(b"eXIf", exif_block(6).removeprefix(b"Exif\0\0"))])
    (tmp_path / "a.png").write_bytes(source)
    for name in ("a.tif", "a.png"):
        file = read_image(tmp_path / name)
        assert file.orientation == 6
        np.testing.assert_array_equal(np.rint(file.rgb * 65535), np.rot90(pixels, -1))
        copy = tmp_path / f"b{name}"
        write_image(copy, file.rgb, file)
        back = tifffile.imread(copy) if name == "a.tif" else imagecodecs.png_decode(copy.read_bytes())
        np.testing.assert_array_equal(back, pixels)
        with Image.open(copy) as image:
            assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("suffix", "bits"), [("png", 8), ("jpg", 8), ("tif", 8), ("webp", 8), ("png", 16), ("tif", 16)]
)
def test_exif_and_icc_kept(tmp_path: Path, suffix: str, bits: int) -> None:
    source, copy = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    if bits == 8:
        Image.fromarray(noise(3)).save(source, exif=exif_block(), icc_profile=ICC)
    else:
        encode = codecs.encode_png if suffix == "png" else codecs.encode_tiff
        metadata = codecs.chunks_from if suffix == "png" else codecs.tags_from_exif
        source.write_bytes(encode(noise(3, 16), metadata(exif_block().removeprefix(b"Exif\0\0"), ICC)))
    file = read_image(source)
    write_image(copy, 1 - file.rgb, file)
    with Image.open(source) as before, Image.open(copy) as after:
        assert after.info["icc_profile"] == ICC
        assert after.getexif()[0x0110] == "Camera Model"
        assert dict(after.getexif().get_ifd(0x8769)) == dict(before.getexif().get_ifd(0x8769))
        if suffix in ("jpg", "webp"):
            assert after.info["exif"] == before.info["exif"]


def test_png_colour_and_text_chunks_kept_bit_for_bit(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "A title")
    info.add_itxt("Comment", "grüß", zip=True)
    info.add(b"gAMA", (45455).to_bytes(4, "big"))
    Image.fromarray(noise(3)).save(tmp_path / "a.png", pnginfo=info, dpi=(72, 72), icc_profile=ICC)
    file = read_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 1 - file.rgb, file)
    before, after = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert len(codecs.png_chunks(before)) == 5
    assert sorted(codecs.png_chunks(after)) == sorted(codecs.png_chunks(before))


def test_alpha_is_unchanged_when_colours_change(tmp_path: Path) -> None:
    for suffix in ("png", "webp", "tif"):
        pixels = noise(4)
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", quality=50)  # lossy WebP too
        with Image.open(tmp_path / f"a.{suffix}") as image:
            alpha = np.asarray(image)[..., 3].copy()
        file = read_image(tmp_path / f"a.{suffix}")
        write_image(tmp_path / f"b.{suffix}", file.rgb * 0.5, file)
        with Image.open(tmp_path / f"b.{suffix}") as image:
            np.testing.assert_array_equal(np.asarray(image)[..., 3], alpha)


def test_palette_and_one_bit_say_what_they_become(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(3))
    picture.quantize(8).save(tmp_path / "p.png")
    picture.convert("1").save(tmp_path / "one.png")
    transparent = picture.quantize(8)
    transparent.save(tmp_path / "pt.png", transparency=0)
    for name, mode, words in [
        ("p.png", "RGB", "palette"),
        ("one.png", "L", "1 bit"),
        ("pt.png", "RGBA", "palette"),
    ]:
        with pytest.warns(ImageWarning, match=words):
            file = read_image(tmp_path / name)
        write_image(tmp_path / f"out_{name}", file.rgb, file)
        with Image.open(tmp_path / name) as before, Image.open(tmp_path / f"out_{name}") as after:
            assert after.mode == mode
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before.convert(mode)))


def test_colour_key_becomes_alpha(tmp_path: Path) -> None:
    pixels = noise(3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=tuple(int(v) for v in pixels[2, 3]))
    file = read_image(tmp_path / "a.png")
    assert file.alpha is not None
    assert file.alpha[2, 3] == 0
    assert file.alpha.mean() > 200


def test_first_frame_with_a_warning(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(3, seed=s)) for s in (0, 1)]
    for suffix in ("tif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {})
        )
        with pytest.warns(ImageWarning, match="more than one frame or page; only the first"):
            file = read_image(path)
        np.testing.assert_array_equal(np.rint(file.rgb * 255), noise(3))


def test_pages_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some megabytes can hold a chain of so many that following it takes minutes."""
    loads: list[int] = []
    load = TiffImagePlugin.ImageFileDirectory_v2.load

    def counted(*args: Any) -> None:
        loads.append(1)
        load(*args)

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", counted)
    numbers = []
    for pages in (2, 30):
        tifffile.imwrite(tmp_path / "a.tif", np.stack([noise(3)] * pages), photometric="rgb")
        loads.clear()
        with pytest.warns(ImageWarning, match="more than one"):
            read_image(tmp_path / "a.tif")
        numbers.append(len(loads))
    assert numbers[0] == numbers[1] > 0


def tiff(*entries: tuple[int, int], count: int = 16) -> bytes:
    """A little-endian TIFF with these tags, in this order; its one strip or tile is ``count`` zeros, deflated."""
    data = zlib.compress(bytes(count))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    offset, length = (324, 325) if 322 in dict(entries) else (273, 279)
    table += struct.pack("<HHIIHHII", offset, 4, 1, start, length, 4, 1, len(data))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries) + 2) + table + bytes(4) + data


GREY16 = ((256, 16), (257, 16), (258, 16), (259, 8), (262, 1), (277, 1))
GREY8 = (*GREY16[:2], (258, 8), *GREY16[3:])
STRIP = (278, 16)
LARGE = ((322, 65536), (323, 65536))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(*GREY16, STRIP, (32997, 300)), r"\(300, 16, 16\), which are not one picture of 16x16"),
        (tiff((256, 60000), *GREY16, STRIP), r"\(16, 60000\), which are not one picture of 16x16"),
        (tiff(*GREY16, *LARGE), "tiles of 65536x65536x1 are far larger than its 16x16"),
        (tiff(*GREY16, (322, 1024), (323, 1024), (32998, 1024)), "tiles of 1024x1024x1024"),
        (tiff(*GREY8, *LARGE), "tiles of 65536x65536x1"),
        (tiff(*GREY8, *LARGE, (322, 16), (323, 16)), "tiles of 65536x65536x1"),  # libtiff takes the first
        # These have a header of their own, and with it a size of their own.
        (tiff(*GREY16[:3], (259, 7), *GREY16[4:], STRIP), "compression 7 .*LZW or Deflate"),
        (tiff(*GREY16[:3], (259, 50001), *GREY16[4:], STRIP), "compression 50001"),
    ],
    ids=["depth", "two widths", "large tile", "deep tile", "8 bits", "8 bits, two tiles", "JPEG", "WebP"],
)
def test_a_small_tiff_does_not_ask_for_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", decode)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", decode)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.tif: .*{words}"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [8, 16])
def test_usual_layouts_of_tiffs_are_read(tmp_path: Path, bits: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(*GREY16, STRIP, count=512))
    assert read_image(tmp_path / "a.tif").rgb.shape == (16, 16, 3)
    layouts: list[dict[str, Any]] = [{"compression": name} for name in ("zlib", "packbits", "lzma", "zstd")]
    layouts += [{"tile": (64, 128)}, {"planarconfig": "separate"}, {"rowsperstrip": 2, "predictor": True}]
    for layout in layouts:
        pixels = noise(3, bits)
        given = np.moveaxis(pixels, -1, 0) if "planarconfig" in layout else pixels
        layout = {"compression": "lzw", **layout}
        tifffile.imwrite(tmp_path / "a.tif", given, photometric="rgb", **layout)
        np.testing.assert_array_equal(np.rint(read_image(tmp_path / "a.tif").rgb * (2**bits - 1)), pixels)


def test_other_format_by_suffix(tmp_path: Path) -> None:
    Image.fromarray(noise(3)).save(tmp_path / "a.jpg", exif=exif_block(6), icc_profile=ICC)
    file = read_image(tmp_path / "a.jpg")
    for name in ("b.png", "b.tif", "b.webp"):
        write_image(tmp_path / name, file.rgb, file)
        again = read_image(tmp_path / name)
        assert again.orientation == 6
        assert again.icc == ICC
        if name != "b.webp":
            np.testing.assert_allclose(again.rgb, file.rgb, atol=1e-6)
    back = read_image(tmp_path / "b.tif")
    write_image(tmp_path / "c.png", back.rgb, back)
    with Image.open(tmp_path / "c.png") as image:
        assert image.getexif()[0x0110] == "Camera Model"
    deep = ImageFile(rgb=file.rgb, bits=16, alpha=np.full(file.rgb.shape[:2], 65535, np.uint16))
    write_image(tmp_path / "d.webp", file.rgb, deep)
    assert read_image(tmp_path / "d.webp").bits == 8
    with pytest.raises(ImageError, match="no transparency"):
        write_image(tmp_path / "d.jpg", file.rgb, deep)
    with pytest.raises(ImageError, match="unknown image suffix"):
        write_image(tmp_path / "d.xyz", file.rgb)
    write_image(tmp_path / "plain.png", file.rgb)
    np.testing.assert_allclose(read_image(tmp_path / "plain.png").rgb, file.rgb, atol=1e-6)


def broken_files(folder: Path) -> dict[str, str]:
    """File name -> what the error must say."""
    good = io.BytesIO()
    Image.fromarray(noise(3)).save(good, "PNG")
    (folder / "cut.png").write_bytes(good.getvalue()[: len(good.getvalue()) // 2])
    flipped = bytearray(good.getvalue())
    flipped[len(flipped) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "text.jpg").write_text("this is no picture\n")
    (folder / "empty.png").write_bytes(b"")
    deep = imagecodecs.png_encode(noise(3, 16))
    (folder / "cut16.png").write_bytes(deep[: len(deep) // 2])
    tifffile.imwrite(folder / "whole.tif", noise(3, 16), photometric="rgb")
    tiff = (folder / "whole.tif").read_bytes()
    (folder / "cut16.tif").write_bytes(tiff[: len(tiff) - 50])
    jpeg = io.BytesIO()
    Image.fromarray(noise(3)).save(jpeg, "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) * 2 // 3])
    Image.fromarray(noise(3)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(1).astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(noise(3)).save(folder / "anim.gif")
    # A header that promises 60000 x 60000 pixels in a file of a few hundred bytes.
    bomb = bytearray(good.getvalue())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)
    return {
        "cut.png": "damaged",
        "flipped.png": "damaged",
        "text.jpg": "not an image",
        "empty.png": "not an image",
        "cut16.png": "damaged",
        "cut16.tif": "damaged",
        "cut.jpg": "damaged",
        "cmyk.jpg": "convert it to RGB",
        "float.tif": "convert it to",
        "anim.gif": "convert it to PNG",
        "bomb.png": "MAX_IMAGE_PIXELS",
    }


def test_broken_files_are_named_in_one_line(tmp_path: Path) -> None:
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        text = str(caught.value)
        assert str(tmp_path / name) in text
        assert words in text
        assert "\n" not in text
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path)


def test_too_large_for_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(pixels: np.ndarray, orientation: int) -> np.ndarray:
        raise MemoryError

    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.float32))
    monkeypatch.setattr("cpl.images.files.upright", exhausted)
    with pytest.raises(ImageError, match=r"a\.png: too large for this machine's memory"):
        read_image(tmp_path / "a.png")


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """A decoder that meets nonsense may raise anything; the reader turns it into ImageError or reads it."""
    rng = np.random.default_rng(1)
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 16), photometric="rgb", compression="zlib")
    originals = [(tmp_path / "a.tif").read_bytes(), imagecodecs.png_encode(noise(3, 16))]
    for name in ("JPEG", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(noise(3)).save(buffer, name, exif=exif_block(3))
        originals.append(buffer.getvalue())
    for round_number in range(40):
        for data in originals:
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 8):
                damaged[position] = rng.integers(256)
            path = tmp_path / "damaged"
            path.write_bytes(damaged if round_number % 2 else damaged[: rng.integers(1, len(data))])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ImageError):
                    read_image(path)


def test_wrong_values_are_refused_before_writing(tmp_path: Path) -> None:
    good = np.zeros((4, 5, 3), np.float32)
    file = ImageFile(rgb=good)
    for bad in (good[..., 0], good.astype(np.uint8), np.full_like(good, np.nan), good[:0]):
        with pytest.raises(ValueError, match=r"a\.png"):
            write_image(tmp_path / "a.png", bad)
    with pytest.raises(ValueError, match=r"\(3, 5, 3\)"):
        write_image(tmp_path / "a.png", good[:3], file)
    assert not list(tmp_path.iterdir())


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit makes the write fail half-way, as a full disk does."""
    old = tmp_path / "old.png"
    write_image(old, np.zeros((4, 4, 3), np.float32))
    before = old.read_bytes()
    code = f"""
import resource, numpy as np
from cpl.images import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for name in ("new.png", "old.png"):
    try:
        write_image({str(tmp_path)!r} + "/" + name, np.random.default_rng(0).random((64, 64, 3)))
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["File too large"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert old.read_bytes() == before
