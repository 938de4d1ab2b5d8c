"""Image files read for a model and written back as they came.

Pillow decodes and encodes. It has no colour mode deeper than 8 bits, so 16-bit PNG and TIFF go
through imagecodecs and tifffile (see codecs.py).

Orientation. A camera may store its picture lying on its side and say so in EXIF. The model gets
the picture upright; the file gets it back the way it was stored, under the unchanged EXIF. So the
output has the input's size in the file, each viewer turns it exactly as it turned the input, and
the EXIF block need not be rewritten, which would break a camera's maker note.

What changes on purpose. Palette images come out as RGB and 1-bit ones as 8-bit grey: a restored
picture has more colours than either can hold. A colour key (PNG's tRNS) comes out as an alpha
channel, because the key colour no longer exists. Lossy files are written at high quality, not with
the source's quantisation, which belongs to the degraded picture.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cpl.errors import CplError
from cpl.extras import require
from cpl.files import atomic_write
from cpl.images import codecs
from cpl.images.error import ImageError, ImageWarning

SUFFIXES: Mapping[str, str] = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM",
    ".pbm": "PPM", ".pnm": "PPM",
}  # fmt: skip
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
_DEEP = ("PNG", "TIFF")  # formats that we write with 16 bits
_ALPHA = ("PNG", "TIFF", "WEBP")
_EXIF = ("PNG", "JPEG", "TIFF", "WEBP")
_QUALITY = 95  # JPEG and lossy WebP: coding noise well below what is left after restoring
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601; sums to 1, so grey stays grey


@dataclass(frozen=True)
class ImageFile:
    """A decoded image file and what is needed to write another like it.

    Attributes:
        rgb: float32 [H, W, 3] in [0, 1], upright; a grey image has three equal channels.
        alpha: uint8 or uint16 [H, W], upright, the stored values; None without transparency.
        format: "PNG", "JPEG", "TIFF", "WEBP", "BMP" or "PPM".
        mode: Pillow's name for the stored pixels ("L", "RGBA", "P", ...).
        bits: bits per channel of the output, 8 or 16.
        grey: the output has one colour channel.
        orientation: EXIF's, 1 to 8; 1 is upright as stored.
        exif, icc: the blocks as stored (EXIF without its ``Exif`` prefix), or None.
        lossless: for WebP, how the source was coded.
        extra: what else the format keeps (PNG chunks, TIFF tags, JPEG's resolution and comment).
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    path: Path | None = None
    format: str = "PNG"
    mode: str = "RGB"
    bits: int = 8
    grey: bool = False
    orientation: int = 1
    exif: bytes | None = None
    icc: bytes | None = None
    lossless: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_image(path: str | os.PathLike[str]) -> ImageFile:
    """Decode an image file; of several frames or pages, the first (with a warning).

    Raises:
        ImageError: not an image, damaged, too large to be honest, or of a kind that has no
            faithful RGB (CMYK, Lab, floating point); says which and what to do.
        OSError: the file cannot be opened.
    """
    source = Path(path)
    with quiet_decoders():
        file, losses = decode_image(read_bytes(source), source)
    for loss in losses:
        warnings.warn(loss, ImageWarning, stacklevel=2)
    return file


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        ImageError: not a file, or empty; OSError: it cannot be opened.
    """
    if not path.is_file():
        path.stat()  # FileNotFoundError, where it is that
        raise ImageError(f"{path}: not a file")
    data = path.read_bytes()
    if not data:
        raise ImageError(f"{path}: empty file (0 bytes), not an image; copy it again from where it came")
    return data


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Without the warnings of the decoding libraries; ours are about what their users can do something about.

    It changes the process's filters, so it belongs to the main thread, around all others' work.
    """
    with warnings.catch_warnings():
        # Pillow warns above its limit of pixels and refuses above twice of it; the refusal is what counts.
        warnings.filterwarnings("ignore", module=r"(PIL|imagecodecs|tifffile)\b")
        yield


def decode_image(data: bytes, source: Path) -> tuple[ImageFile, list[str]]:
    """What `read_image` makes of a file's content, and what of it does not survive, in words, instead of a warning."""
    image_module = require("PIL.Image")
    image_module.init()  # all plugins: open() looks the names up among those registered so far
    try:
        with image_module.open(io.BytesIO(data), formats=_FORMATS) as image:
            file = _decode(image, data, source)
            # Not how many: to count them, Pillow reads a TIFF's chain of pages in quadratic time.
            several = bool(getattr(image, "is_animated", False))
    except (ImageError, CplError):
        raise
    except image_module.DecompressionBombError as error:
        raise ImageError(
            f"{source}: refused, {error}; if you trust it, cut it up, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except image_module.UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise ImageError(
            f"{source}: not an image in a format that is read here ({known}); convert it to PNG"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{source}: too large for this machine's memory; cut it into parts") from error
    except Exception as error:  # a damaged file can raise anything inside a decoder
        raise ImageError(f"{source}: damaged or incomplete image ({_reason(error)})") from error
    losses: list[str] = []
    if file.format == "PPM" and codecs.netpbm_maximum(data) > 255:
        losses.append("has more than 8 bits per channel, of which 8 are used; a 16-bit PNG keeps them")
    if several:
        losses.append("has more than one frame or page; only the first is used")
    if file.mode in ("P", "PA"):
        losses.append("is a palette image and is written as RGB, since restoring makes new colours")
    elif file.mode == "1":
        losses.append("has 1 bit per pixel and is written as 8-bit grey, since restoring makes grey levels")
    return file, [f"{source} {loss}" for loss in losses]


def write_image(
    path: str | os.PathLike[str],
    rgb: np.ndarray,
    like: ImageFile | None = None,
    *,
    lossless: bool | None = None,
) -> None:
    """Write ``rgb`` (float [H, W, 3] in [0, 1], upright), whole or not at all.

    With ``like``, the file gets its bit depth, grey or colour, alpha (bit for bit), orientation,
    EXIF and ICC profile. The suffix of ``path`` chooses the format; an unknown one means that of
    ``like``. Without ``like``: 8-bit RGB. Values are clipped to [0, 1] and rounded to nearest.
    JPEG: quality 95, no chroma subsampling. ``lossless`` is for WebP (default: as the source).

    Raises:
        ValueError: the shape is wrong, or not that of ``like``; values are not finite.
        ImageError: the format cannot hold this image.
        OSError: the file cannot be written (disk full, no permission).
    """
    data = encode_image(path, rgb, like, lossless=lossless)
    with atomic_write(path) as file:
        file.write(data)


def encode_image(
    path: str | os.PathLike[str],
    rgb: np.ndarray,
    like: ImageFile | None = None,
    *,
    lossless: bool | None = None,
) -> bytes:
    """The content that `write_image` gives the file ``path``; the same errors."""
    target = Path(path)
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or not np.issubdtype(rgb.dtype, np.floating):
        raise ValueError(f"{target}: want a float array [H, W, 3] in [0, 1], got {rgb.dtype} {rgb.shape}")
    if not np.isfinite(rgb).all():
        raise ValueError(f"{target}: the image holds NaN or infinite values")
    if like is None:
        like = ImageFile(rgb=rgb, format="", lossless=False)
    elif like.rgb.shape != rgb.shape:
        raise ValueError(f"{target}: image is {rgb.shape}, but the file it is to be like is {like.rgb.shape}")
    name = SUFFIXES.get(target.suffix.lower(), like.format)
    if not name:
        raise ImageError(f"{target}: unknown image suffix; use one of {', '.join(SUFFIXES)}")
    if like.alpha is not None and name not in _ALPHA:
        raise ImageError(f"{target}: {name} has no transparency, which the source has; write PNG instead")
    pixels = _stored_pixels(rgb, like, name)
    try:
        return _encode(pixels, like, name, like.lossless if lossless is None else lossless)
    except CplError:
        raise
    except Exception as error:  # a size that the format cannot hold, metadata that it refuses
        raise ImageError(f"{target}: cannot be written as {name} ({_reason(error)})") from error


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels [H, W, ...] the way EXIF's orientation (1 to 8) says they are to be shown."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`."""
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation >= 5 else pixels


def _decode(image: Any, data: bytes, path: Path) -> ImageFile:
    name = "JPEG" if image.format == "MPO" else image.format  # MPO: a phone's JPEG with more pictures behind
    orientation = _orientation(image)
    extra: dict[str, Any] = {}
    exif = image.info.get("exif")
    icc = image.info.get("icc_profile")
    if name == "PNG":
        extra["chunks"] = codecs.png_chunks(data)
    elif name == "TIFF":  # before load(), which drops tags
        codecs.check_tiff(image, data, path)
        extra["tags"] = codecs.tiff_tags(image)
        exif = None
    else:
        extra = {k: image.info[k] for k in ("dpi", "comment", "xmp") if k in image.info}
        extra["progressive"] = bool(image.info.get("progressive"))

    mode = image.mode
    if name == "PPM" and mode == "I":
        raise ImageError(f"{path}: a PGM with more than 8 bits is not read; convert it to a 16-bit PNG")
    if codecs.is_deep(image, data):
        stored, bits = codecs.decode_deep(data, name, path), 16
        pixels = upright(stored, orientation)
    else:
        stored, bits = np.asarray(_plain(image, path)), 8
        # Pillow turns some TIFFs while loading them, and then removes the tag.
        pixels = (
            stored if name == "TIFF" and _orientation(image) != orientation else upright(stored, orientation)
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    scale = np.float32(2**bits - 1)
    rgb = pixels[:, :, :colours].astype(np.float32) / scale
    return ImageFile(
        rgb=np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3))),
        alpha=np.ascontiguousarray(pixels[:, :, -1]) if colours < pixels.shape[2] else None,
        path=path,
        format=name,
        mode=mode,
        bits=bits,
        grey=colours == 1,
        orientation=orientation,
        exif=exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else None,
        icc=icc or None,
        lossless=name != "WEBP" or b"VP8L" in data[:64],
        extra=extra,
    )


def _plain(image: Any, path: Path) -> Any:
    """The 8-bit image in mode L, LA, RGB or RGBA."""
    if image.mode == "CMYK":
        raise ImageError(
            f"{path}: CMYK, whose colours depend on a printing profile; convert it to RGB with that profile"
        )
    image.load()
    keyed = "transparency" in image.info
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if keyed or image.mode == "PA" else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "RGB"):
        return image.convert(image.mode.replace("RGB", "RGBA").replace("L", "LA")) if keyed else image
    if image.mode in ("LA", "RGBA"):
        return image
    raise ImageError(
        f"{path}: pixels of kind {image.mode!r} are not supported; convert it to 8- or 16-bit RGB or grey"
    )


def _stored_pixels(rgb: np.ndarray, like: ImageFile, name: str) -> np.ndarray:
    """uint8 or uint16 [H, W, 1 to 4], contiguous, in the orientation that the file stores."""
    bits = 16 if like.bits == 16 and name in _DEEP else 8
    dtype = np.uint16 if bits == 16 else np.uint8
    if like.grey:
        rgb = (rgb.astype(np.float32) @ LUMA)[:, :, None]
    pixels = np.rint(np.clip(rgb, 0, 1) * np.float32(2**bits - 1)).astype(dtype)
    if like.alpha is not None:
        alpha = like.alpha
        if alpha.dtype != dtype:  # another format than the source's, with fewer bits
            alpha = np.rint(alpha / 257).astype(dtype)
        pixels = np.concatenate([pixels, alpha[:, :, None]], axis=2)
    return np.ascontiguousarray(as_stored(pixels, like.orientation if name in _EXIF else 1))


def _encode(pixels: np.ndarray, like: ImageFile, name: str, lossless: bool) -> bytes:
    same = name == like.format
    if name == "TIFF":
        tags = like.extra["tags"] if same else codecs.tags_from_exif(like.exif, like.icc)
        return codecs.encode_tiff(pixels, tags)
    exif = codecs.exif_from_tags(like.extra["tags"]) if like.format == "TIFF" else like.exif
    if name == "PNG":
        chunks = like.extra["chunks"] if same else codecs.chunks_from(exif, like.icc)
        return codecs.encode_png(pixels, chunks)
    options: dict[str, Any] = {}
    if name in _EXIF:
        if exif:
            options["exif"] = b"Exif\0\0" + exif if name == "JPEG" else exif
        if like.icc:
            options["icc_profile"] = like.icc
        options.update({k: like.extra[k] for k in ("dpi", "comment", "xmp") if k in like.extra})
    if name == "JPEG":
        options |= {
            "quality": _QUALITY,
            "subsampling": 0,
            "progressive": like.extra.get("progressive", False),
        }
    elif name == "WEBP":
        # exact and alpha_quality: colours under full transparency, and alpha itself, stay as they are.
        options |= {"lossless": lossless, "quality": 100 if lossless else _QUALITY}
        options |= {"exact": True, "alpha_quality": 100}
    return codecs.pillow_bytes(pixels, name, **options)


def _orientation(image: Any) -> int:
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
