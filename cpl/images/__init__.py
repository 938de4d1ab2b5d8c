"""Image files to arrays and back; data, inference and serving all stand on it.

files   read_image, write_image: what a photo is made of survives the round trip
codecs  what Pillow has no mode for: 16-bit PNG and TIFF
"""

from cpl.images.error import ImageError, ImageWarning
from cpl.images.files import (
    LUMA,
    SUFFIXES,
    ImageFile,
    decode_image,
    encode_image,
    quiet_decoders,
    read_bytes,
    read_image,
    write_image,
)

__all__ = [
    "LUMA",
    "SUFFIXES",
    "ImageError",
    "ImageFile",
    "ImageWarning",
    "decode_image",
    "encode_image",
    "quiet_decoders",
    "read_bytes",
    "read_image",
    "write_image",
]
