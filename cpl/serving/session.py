"""What the page does with one photo: checked, degraded if so wanted, restored, its prompts read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cpl.data.seeding import generator
from cpl.degradations import Degradation, create
from cpl.errors import CplError, TooLittleMemory, TooLittleRoom
from cpl.extras import require
from cpl.images import SUFFIXES, ImageError, ImageFile, read_image, write_image
from cpl.inference.inspect.usage import Likely, Usage
from cpl.inference.metrics import psnr
from cpl.inference.restore import restore
from cpl.inference.routing import Choice, watch_routing
from cpl.inference.streaming.limits import parse_memory, untiled_bytes
from cpl.models.restorer import MULTIPLE, Restorer

AS_IT_IS = ""  # instead of a degradation's name: restore the photo that was given


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        upload_bytes: of a file.
        pixels: of a photo, height and width rounded up to the multiple of 8 that the network works on.
        memory: bytes that restoring takes beside the model; a photo that would take more is restored window by
            window, to the same result.
    """

    upload_bytes: int = 32 * 2**20
    pixels: int = 12_000_000
    memory: int = 2 * 2**30


@dataclass(frozen=True)
class Answer:
    """What became of one photo.

    Attributes:
        before, after: float32 [H, W, 3] in [0, 1]; ``before`` is what the network was given.
        source: the photo as it was read; ``after`` can be written as a file like it.
        degradation: that was added, with what was drawn for it left open; "" for none.
        choices: of the routers, levels 1 to 3; empty for a network without prompts.
        likely: which degradation these choices look like; None without a table of usage.
        scores: PSNR in dB of before and after against the photo as it was; None where nothing was added.
    """

    before: np.ndarray
    after: np.ndarray
    source: ImageFile
    degradation: str
    choices: list[Choice]
    likely: Likely | None
    scores: tuple[float, float] | None


@dataclass
class Session:
    """A model, and how it is offered.

    Args:
        model: any network that `cpl.restore` takes; prompts are shown where it has some.
        degradations: name -> specification, what a visitor can add; checked here.
        usage: of this model's prompts, to name the likely degradation by.
        dtype: "fp32" or "bf16".

    Raises:
        ValueError: an unknown degradation.
    """

    model: nn.Module
    degradations: Mapping[str, str | Mapping[str, Any] | Degradation]
    usage: Usage | None = None
    limits: Limits = field(default_factory=Limits)
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        self._degradations = {name: create(spec) for name, spec in self.degradations.items()}

    @property
    def has_prompts(self) -> bool:
        return isinstance(self.model, Restorer) and bool(self.model.config.num_prompts)

    def answer(
        self,
        path: str | os.PathLike[str] | None,
        degradation: str = AS_IT_IS,
        seed: int = 0,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Answer:
        """Restore the photo in the file ``path``, after adding a degradation to it if one is named.

        Args:
            degradation: one of the names offered, or "" for none.
            seed: of what is drawn for the degradation.
            progress: called with the share of the work done, while windows are worked through.

        Raises:
            CplError: no file, no image, too large, a degradation that is not offered, or not enough memory; the
                message is for the visitor and names no path of this machine.
        """
        if path is None:
            raise CplError("Choose a photo first: drop one, or take an example.")
        if degradation != AS_IT_IS and degradation not in self._degradations:
            raise CplError(f"There is no degradation {degradation[:40]!r} here.")
        source = self._read(Path(path))
        clean = source.rgb
        before = clean
        if degradation != AS_IT_IS:
            before = self._degradations[degradation](clean, generator(seed, "serve", degradation))
        after, choices = self._restore(before, progress)
        return Answer(
            before,
            after,
            source,
            degradation,
            choices,
            self.usage.likely(choices) if self.usage is not None and choices else None,
            (psnr(before, clean), psnr(after, clean)) if degradation != AS_IT_IS else None,
        )

    def _read(self, path: Path) -> ImageFile:
        try:
            self._check_limits(path)
            try:
                return read_image(path)
            except CplError as error:
                # The file's name here is a temporary one, which says nothing to the visitor.
                raise CplError(f"This file cannot be restored: {_without(path, error)}") from error
        except OSError as error:
            raise CplError("This file is gone or cannot be read; upload it again.") from error

    def _check_limits(self, path: Path) -> None:
        if path.stat().st_size > self.limits.upload_bytes:
            raise CplError(f"This file is larger than {self.limits.upload_bytes / 2**20:.3g} MiB.")
        try:
            width, height = _size(path)
        except ImageError as error:
            raise CplError(f"This file cannot be restored: {error}") from error
        whole = -(-width // MULTIPLE) * MULTIPLE, -(-height // MULTIPLE) * MULTIPLE
        if whole[0] * whole[1] > self.limits.pixels:
            seen = width * height > self.limits.pixels
            counted = "" if seen else f" (worked on as {whole[0]}x{whole[1]})"
            raise CplError(
                f"This photo has {width}x{height} pixels{counted}, and {self.limits.pixels / 1e6:g} megapixels are "
                "taken here: make it smaller."
            )

    def _restore(
        self, image: np.ndarray, progress: Callable[[float], None]
    ) -> tuple[np.ndarray, list[Choice]]:
        memory = self._memory(image)
        try:
            if not self.has_prompts:
                return restore(self.model, image, dtype=self.dtype, memory=memory, progress=progress), []
            with watch_routing(self.model) as routing:
                after = restore(self.model, image, dtype=self.dtype, memory=memory, progress=progress)
        except (TooLittleMemory, TooLittleRoom) as error:  # whose remedy is one for who started the server
            height, width = image.shape[:2]
            what = "memory" if isinstance(error, TooLittleMemory) else "disk space"
            raise CplError(
                f"This server has not the {what} for a photo of {width}x{height} pixels: make it smaller, or crop it."
            ) from error
        return after, routing.choices()[0]

    def _memory(self, image: np.ndarray) -> int | None:
        """The limit for `cpl.restore`: only where the photo would exceed it, and where windows can be."""
        if not isinstance(self.model, Restorer) or self.dtype != "fp32":
            return None
        height, width = image.shape[:2]
        device = next(self.model.parameters()).device
        large = untiled_bytes(self.model, (1, 3, height, width), device) > self.limits.memory
        return self.limits.memory if large else None


def restored_name(name: str, like: ImageFile) -> str:
    """What the restored file of an upload called ``name`` is called."""
    stem = (
        "".join(c if c.isalnum() or c in "-_. " else "_" for c in Path(name).stem)[:60].strip(". ") or "photo"
    )
    suffix = Path(name).suffix.lower()
    if SUFFIXES.get(suffix) != like.format:  # a file may be called anything
        suffix = next(known for known, kind in SUFFIXES.items() if kind == like.format)
    return f"{stem}_restored{suffix}"


def save_answer(answer: Answer, path: str | os.PathLike[str]) -> None:
    """Write the restored photo with its source's format, bit depth, transparency, EXIF and colour profile.

    Raises:
        CplError: the format cannot hold it; names no path of this machine.
        OSError: the file cannot be written.
    """
    try:
        write_image(path, answer.after, answer.source)
    except CplError as error:
        raise CplError(f"The restored photo cannot be saved: {_without(Path(path), error)}") from error


def parse_upload(size: str) -> int:
    """Bytes of "32MB"; the error names the option.

    Raises:
        CplError: it is none.
    """
    try:
        return parse_memory(size)
    except ValueError:
        raise CplError(f"--upload must be a size like '32MB', got {size!r}") from None


def _without(path: Path, error: CplError) -> str:
    """What the error says, without the path that it names."""
    return str(error).replace(str(path), "").removeprefix(": ").strip()


def _size(path: Path) -> tuple[int, int]:
    """Width and height by the header, before anything is decoded.

    Raises:
        ImageError: no header that says so.
    """
    image_module = require("PIL.Image")
    image_module.init()  # all plugins: open() looks the names up among those registered so far
    formats = sorted(set(SUFFIXES.values()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: counted by the caller
            with image_module.open(path, formats=formats) as image:
                width, height = image.size
                return int(width), int(height)
    except image_module.DecompressionBombError as error:
        raise ImageError("it says that it has far too many pixels") from error
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the picture
            raise
        raise ImageError(f"it is no image of a kind that is read here ({', '.join(formats)})") from error
    except Exception as error:  # a hostile header can raise anything inside a parser
        raise ImageError("its header is damaged") from error
