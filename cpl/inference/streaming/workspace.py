"""Where feature maps lie between two sweeps: in memory as long as there is some, then in files.

A file has no name from the moment it is open, so nothing is left behind however the process ends. Its pages belong to
the file: the system may write them out, and they are not the process's own memory.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cpl.errors import TooLittleRoom
from cpl.inference.streaming.limits import in_words

BYTES = 4  # of a float32


class Box(NamedTuple):
    """Rows top to bottom and columns left to right of a map, without the latter."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, halo: int, height: int, width: int) -> Box:
        """With ``halo`` more on each side, as far as a map of that size reaches."""
        return Box(
            max(0, self.top - halo),
            min(height, self.bottom + halo),
            max(0, self.left - halo),
            min(width, self.right + halo),
        )


class Source(Protocol):
    """What a part [1, C, bottom - top, right - left] can be read from."""

    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def read(self, box: Box) -> Tensor: ...


@dataclass
class Map:
    """A feature map [C, H, W] in float32; ``data`` is None while only its size counts.

    What is read is a view.
    """

    channels: int
    height: int
    width: int
    data: Tensor | None
    in_file: bool

    @property
    def bytes(self) -> int:
        return BYTES * self.channels * self.height * self.width

    def read(self, box: Box) -> Tensor:
        assert self.data is not None
        return self.data[None, :, box.top : box.bottom, box.left : box.right]

    def write(self, box: Box, values: Tensor) -> None:
        assert self.data is not None
        self.data[:, box.top : box.bottom, box.left : box.right] = values[0]


@dataclass(frozen=True)
class Joined:
    """Maps of one size beside each other, as one of all their channels."""

    maps: tuple[Map, ...]

    @property
    def channels(self) -> int:
        return sum(part.channels for part in self.maps)

    @property
    def height(self) -> int:
        return self.maps[0].height

    @property
    def width(self) -> int:
        return self.maps[0].width

    def read(self, box: Box) -> Tensor:
        return torch.cat([part.read(box) for part in self.maps], dim=1)


class Workspace:
    """Hands out maps and takes them back.

    Attributes:
        most_in_memory, most_in_files: bytes at the worst moment so far.
        most_maps_in_memory, most_maps_in_files: how many maps, likewise.
    """

    def __init__(
        self,
        memory: int,
        folder: Path | None,
        counts_only: bool = False,
        remedy: str = "set TMPDIR to a larger disk",
    ) -> None:
        """``memory``: bytes of maps that may lie in memory; the rest goes into files in ``folder``.

        ``remedy``: what the error says to do where that folder has not the room.
        """
        self._memory, self._folder, self._counts_only = memory, folder, counts_only
        self._remedy = remedy
        self._in_memory = self._in_files = 0
        self.most_in_memory = self.most_in_files = 0
        self._maps_in_memory = self._maps_in_files = 0
        self.most_maps_in_memory = self.most_maps_in_files = 0

    def make(self, channels: int, height: int, width: int) -> Map:
        """A map whose values are still to be written.

        Raises:
            TooLittleRoom: it goes into a file, and there is no room for that.
        """
        made = Map(channels, height, width, None, in_file=False)
        made.in_file = self._in_memory + made.bytes > self._memory
        if made.in_file:
            self._in_files += made.bytes
            self._maps_in_files += 1
            self.most_in_files = max(self.most_in_files, self._in_files)
            self.most_maps_in_files = max(self.most_maps_in_files, self._maps_in_files)
        else:
            self._in_memory += made.bytes
            self._maps_in_memory += 1
            self.most_in_memory = max(self.most_in_memory, self._in_memory)
            self.most_maps_in_memory = max(self.most_maps_in_memory, self._maps_in_memory)
        if not self._counts_only:
            flat = self._in_file(made.bytes) if made.in_file else torch.empty(made.bytes // BYTES)
            made.data = flat.view(channels, height, width)
        return made

    def free(self, *maps: Map) -> None:
        for one in maps:
            one.data = None
            if one.in_file:
                self._in_files -= one.bytes
                self._maps_in_files -= 1
            else:
                self._in_memory -= one.bytes
                self._maps_in_memory -= 1

    def _in_file(self, size: int) -> Tensor:
        try:
            return self._file(size)
        except OSError as error:  # the plan saw room, which others have taken since, or a quota
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TooLittleRoom(
                f"{self._folder} has no room for {in_words(size, math.ceil)} more of scratch files "
                f"({error.strerror}): {self._remedy}"
            ) from error

    def _file(self, size: int) -> Tensor:
        handle, name = tempfile.mkstemp(prefix="cpl-", suffix=".map", dir=self._folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    handle, 0, size
                )  # a full disk says so here, not as a bus error in the middle
            else:
                os.truncate(handle, size)
            return torch.from_file(name, shared=True, size=size // BYTES, dtype=torch.float32)
        finally:
            os.close(handle)
            Path(name).unlink()
