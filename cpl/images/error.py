"""What reading and writing image files raises and warns of."""

from __future__ import annotations

from cpl.errors import CplError


class ImageError(CplError):
    """A file that cannot be read or written as an image; the message names the file and the remedy."""


class ImageWarning(UserWarning):
    """Something of an image file that does not survive; the message names the file and what."""
