"""What Pillow leaves out: 16 bits per colour channel, and metadata kept bit for bit.

PNG (W3C PNG specification, third edition): pixels by imagecodecs (libpng) at 16 bits, by Pillow at
8; colour and text chunks are carried over from the source file unread. TIFF (revision 6.0): pixels
are read by tifffile at 16 bits; written here at both depths as one Deflate strip, with the tags of
the source, through Pillow's ImageFileDirectory_v2.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpl.extras import require
from cpl.images.error import ImageError

Chunks = list[tuple[bytes, bytes]]
Tags = dict[int, tuple[int, Any]]  # tag -> (TIFF type, value)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour meaning, physical size, text and EXIF. Left out: what speaks of the old pixels (PLTE, tRNS,
# bKGD, hIST, sBIT) and the time of change.
_PNG_KEPT = frozenset(b"cICP iCCP sRGB gAMA cHRM mDCV cLLI pHYs eXIf tEXt zTXt iTXt".split())

# Tags that describe how the pixels are laid out in the source file; the output has its own.
_TIFF_LAYOUT = {
    254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291,
    292, 293, 317, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336, 339, 340, 341, 347,
    *range(512, 522), 529, 530, 531, 532, 37724,
}  # fmt: skip
_ICC, _EXIF_IFD, _GPS_IFD = 34675, 34665, 34853
_EXTRA_SAMPLES = 338
_TILE_WIDTH = 322
_UNDEFINED, _LONG = 7, 4
_UINT32 = 2**32
# None, LZW, Deflate (two numbers), PackBits, LZMA, ZSTD: what Pillow opens too, and of which tifffile takes no more
# than the layout calls for. Of a kind with a header of its own (JPEG, WebP) it would decode as much as that says.
_TIFF_COMPRESSIONS = {1, 5, 8, 32946, 32773, 34925, 50000}
_LARGE_TILE = 4096 * 4096  # pixels; a small picture may lie in one tile that is larger than it


def pillow_bytes(pixels: np.ndarray, name: str, **options: Any) -> bytes:
    """uint8 [H, W, 1 to 4] encoded by Pillow."""
    image = require("PIL.Image").fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def is_deep(image: Any, data: bytes) -> bool:
    """Whether the opened image stores 16 unsigned bits per channel in a format that is read at full depth."""
    if image.format == "PNG":
        return data[24:25] == b"\x10"  # IHDR: width, height, bit depth
    if image.format == "TIFF":
        tags = image.tag_v2
        unsigned = set(tags.get(339, (1,))) == {1}
        return unsigned and set(tags.get(258, (1,))) == {16} and tags.get(262, 1) in (0, 1, 2)
    return False


def netpbm_maximum(data: bytes) -> int:
    """The largest value of a PGM or PPM file, the fourth field of its header (netpbm's ppm(5)); 1 for PBM."""
    fields = re.match(rb"P[2356](?:(?:\s|#[^\n]*\n)+\d+){2}(?:\s|#[^\n]*\n)+(\d+)", data[:65536])
    return int(fields[1]) if fields else 1


def check_tiff(image: Any, data: bytes, path: Path) -> None:
    """Hold a TIFF's layout against the width and height that Pillow read, before anything is decoded.

    Its other tags can ask a decoder for far more memory than these (ImageDepth, tiles, tags given twice).

    Raises:
        ImageError: they do, or 16-bit pixels are packed in a way that is not read.
    """
    deep = is_deep(image, data)
    if not deep and _TILE_WIDTH not in image.tag_v2:  # libtiff itself refuses strips that are too long
        return
    width, height = image.size  # turned as shown
    with require("tifffile").TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
    tile = page.tiledepth * page.tilewidth * page.tilelength if page.is_tiled else 0
    if tile > max(width * height, _LARGE_TILE):
        raise ImageError(
            f"{path}: its tiles of {page.tilewidth}x{page.tilelength}x{page.tiledepth} are far larger than its "
            f"{width}x{height} pixels; save it without tiles"
        )
    if not deep:
        return
    if (
        sorted((page.imagewidth, page.imagelength)) != sorted((width, height))
        or page.imagedepth != 1
        or page.samplesperpixel > 4
    ):
        raise ImageError(
            f"{path}: stores pixels of shape {page.shape}, which are not one picture of {width}x{height} pixels; "
            "save it as a plain RGB TIFF or PNG"
        )
    if page.compression not in _TIFF_COMPRESSIONS:
        raise ImageError(
            f"{path}: 16-bit pixels with TIFF compression {int(page.compression)} are not read; save it with LZW or "
            "Deflate"
        )


def decode_deep(data: bytes, name: str, path: Path) -> np.ndarray:
    """uint16 [H, W] or [H, W, 2 to 4] as stored; of a TIFF that :func:`check_tiff` let pass.

    Raises:
        ImageError: pixels of a kind that is not supported; and whatever the decoder raises on damage.
    """
    if name == "PNG":
        pixels = require("imagecodecs").png_decode(data)
    else:
        with require("tifffile").TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            if page.compression != 1:
                require("imagecodecs")  # tifffile would name it in its own words
            pixels = page.asarray()
            if page.planarconfig == 2 and pixels.ndim == 3:
                pixels = np.moveaxis(pixels, 0, -1)
            if page.photometric == 0:  # white is zero
                pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.dtype != np.uint16 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ImageError(
            f"{path}: {pixels.dtype} pixels of shape {pixels.shape} are not supported; convert to RGB"
        )
    return pixels


def png_chunks(data: bytes) -> Chunks:
    """The chunks of a PNG file that a restored copy keeps, in order, bit for bit."""
    kept: Chunks = []
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in _PNG_KEPT and position + 12 + length <= len(data):
            kept.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return kept


def chunks_from(exif: bytes | None, icc: bytes | None) -> Chunks:
    """PNG chunks for metadata that came from another format."""
    chunks: Chunks = []
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif))
    return chunks


def encode_png(pixels: np.ndarray, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """uint8 or uint16 [H, W, 1 to 4] as PNG, with ``chunks`` right after the header."""
    if pixels.dtype == np.uint16:
        flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        data = require("imagecodecs").png_encode(np.ascontiguousarray(flat), level=6)
    else:
        data = pillow_bytes(pixels, "PNG")
    header = len(_PNG_SIGNATURE) + 12 + 13  # IHDR is always first and 13 bytes long
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:header] + b"".join(framed) + data[header:]


def tiff_tags(image: Any) -> Tags:
    """The tags of an opened TIFF (first page) that a restored copy keeps, EXIF and GPS included."""
    source = image.tag_v2
    tags: Tags = {}
    for tag in source:
        if tag not in _TIFF_LAYOUT and tag not in (_EXIF_IFD, _GPS_IFD):
            tags[tag] = (source.tagtype[tag], source[tag])
    exif = image.getexif()
    for tag in (_EXIF_IFD, _GPS_IFD):
        directory = dict(exif.get_ifd(tag))
        if directory:
            tags[tag] = (_LONG, directory)
    return tags


def tags_from_exif(exif: bytes | None, icc: bytes | None) -> Tags:
    """TIFF tags for metadata that came from another format."""
    tags: Tags = {}
    if exif:
        block = require("PIL.Image").Exif()
        block.load(b"Exif\0\0" + exif)
        types = _directory()
        for tag, value in block.items():
            if tag not in _TIFF_LAYOUT and tag not in (_EXIF_IFD, _GPS_IFD):
                types[tag] = value  # Pillow picks the type that fits the value
                tags[tag] = (types.tagtype[tag], value)
        for tag in (_EXIF_IFD, _GPS_IFD):
            if directory := dict(block.get_ifd(tag)):
                tags[tag] = (_LONG, directory)
    if icc:
        tags[_ICC] = (_UNDEFINED, icc)
    return tags


def exif_from_tags(tags: Mapping[int, tuple[int, Any]]) -> bytes | None:
    """An EXIF block (without its prefix) from TIFF tags, for another format."""
    block = require("PIL.Image").Exif()
    for tag, (_, value) in tags.items():
        if tag != _ICC:
            block[tag] = value
    return block.tobytes().removeprefix(b"Exif\0\0") if len(block) else None


def encode_tiff(pixels: np.ndarray, tags: Mapping[int, tuple[int, Any]]) -> bytes:
    """uint8 or uint16 [H, W, 1 to 4] as a little-endian TIFF of one Deflate strip.

    Raises:
        ValueError: more than the 4 GiB that a TIFF can address.
    """
    height, width, channels = pixels.shape
    colours = channels - (channels in (2, 4))
    # Predictor 2: each value as its difference from the left neighbour, modulo 2^bits.
    differences = np.diff(pixels, axis=1, prepend=np.zeros_like(pixels[:, :1]))
    strip = zlib.compress(differences.astype(pixels.dtype.newbyteorder("<")).tobytes(), 6)
    if len(strip) >= _UINT32 - 2**24:
        raise ValueError(f"{len(strip)} bytes are beyond a TIFF's 4 GiB; write PNG")
    directory = _directory()
    for tag, (kind, value) in tags.items():
        if tag == _EXTRA_SAMPLES:
            continue
        directory.tagtype[tag] = kind
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a malformed tag is not worth the picture
            directory[tag] = value
    layout = {
        256: width,
        257: height,
        258: (pixels.dtype.itemsize * 8,) * channels,
        259: 8,  # Deflate
        262: 1 if colours == 1 else 2,
        273: 0,  # Pillow adds where the directory ends
        277: channels,
        278: height,
        279: len(strip),
        284: 1,
        317: 2,
    }
    if colours < channels:  # 2: alpha that is not multiplied into the colours; the source may say 1
        layout[_EXTRA_SAMPLES] = tags[_EXTRA_SAMPLES][1] if _EXTRA_SAMPLES in tags else 2
    for tag, value in layout.items():
        directory[tag] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + strip


def _directory() -> Any:
    return require("PIL.TiffImagePlugin").ImageFileDirectory_v2(b"II\x2a\x00\x00\x00\x00\x00")
