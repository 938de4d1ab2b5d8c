"""The exact restoring of an image of any size within a limit on the process's own memory."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpl.errors import TooLittleMemory, TooLittleRoom
from cpl.inference.streaming.limits import in_words, lies_in_memory, more_memory
from cpl.inference.streaming.walk import Walk
from cpl.inference.streaming.workspace import Workspace
from cpl.models.restorer import Restorer

# A strip needs no more than the larger of these two: more bytes are not faster, and strips of a wide image have 32 rows
# then with a halo of two on each side, of six rows in the smallest: in strips of four, half the work was on halos.
_LARGE_STRIP = 256 * 2**20  # bytes
_LARGE_IN_SMALLEST = 6  # times the smallest
CLOSE = 1e-5  # a router's margin from which on the untiled network chooses the same prompts
_SPARE = 0.05  # of the limit, left free: 12 megapixels within 2 GiB held 0.02 % more than that without it
_HELD = 1.6  # times what a strip's arithmetic holds by the count: allocators, and the kernels' own scratch


@dataclass(frozen=True)
class Plan:
    """What restoring an image will take, in bytes where nothing else is said.

    Attributes:
        height, width: of the image, in pixels.
        strip: of what is computed at a time.
        fewest_rows: of a feature map that are computed at a time; None: every map is one strip.
        maps_in_memory, maps_in_files: of feature maps, at the worst moment.
        count_in_memory, count_in_files: how many maps that is.
        folder: of the scratch files.
        least: the smallest limit with which this image could be restored at all.
        work: of all sweeps, pixels times channels; what progress is a share of.
        folder_is_memory: the scratch files take memory and no disk, since their folder is on a tmpfs.
        free: what was free, where nobody set a limit and half of that is it.
    """

    height: int
    width: int
    strip: int
    fewest_rows: int | None
    maps_in_memory: int
    maps_in_files: int
    count_in_memory: int
    count_in_files: int
    folder: Path
    least: int
    work: float
    folder_is_memory: bool = False
    free: int | None = None

    def __str__(self) -> str:
        rows = "in one strip" if self.fewest_rows is None else f"in strips of {self.fewest_rows} rows or more"
        memory, files = self.maps_in_memory + self.strip, self.maps_in_files
        return (
            f"{self.width}x{self.height} {rows}, in about {in_words(memory)} of memory with "
            f"{_maps(self.count_in_memory)} in it, "
            + (
                f"and {in_words(files)} of scratch files in {self.folder} for {_maps(self.count_in_files)}"
                if files
                else "and no scratch files"
            )
            + (
                f" (warning: {self.folder} is a tmpfs, so these files are memory too: set TMPDIR to a disk)"
                if files and self.folder_is_memory
                else ""
            )
        )

    @property
    def remedy(self) -> str:
        """What to do where the folder lacks the room for the scratch files."""
        return f"set TMPDIR to a larger disk, or {more_memory(self.free)}"

    def check_disk(self) -> None:
        """Raises TooLittleRoom if the folder lacks the room for the scratch files."""
        free = shutil.disk_usage(self.folder).free
        if self.maps_in_files > free:
            raise TooLittleRoom(
                f"the feature maps of a {self.width}x{self.height} image need "
                f"{in_words(self.maps_in_files, math.ceil)} of scratch files and {self.folder} has "
                f"{in_words(free, math.floor)} free: {self.remedy}"
            )


def _maps(count: int) -> str:
    return f"{count} feature map{'' if count == 1 else 's'}"


def plan(
    model: Restorer,
    height: int,
    width: int,
    limit: int,
    folder: str | Path | None = None,
    free: int | None = None,
) -> Plan:
    """For an image of that size, with ``limit`` bytes of memory beyond what the process has already.

    ``free``: None if a user set that limit; else the bytes of memory that are free, half of which it is.

    Raises:
        TooLittleMemory: even the smallest plan needs more; the message says how much.
    """

    def walk(memory: int, strip: int = 0) -> Walk:
        workspace = Workspace(memory, None, counts_only=True)
        made = Walk(model, workspace, int(strip / _HELD), torch.device("cpu"), computes=False)
        made.run(torch.empty(3, height, width, device="meta"))
        return made

    image = 2 * 4 * 3 * height * width  # given and made
    smallest = int(_HELD * walk(0).smallest_strip)
    least = image + smallest
    if limit < least:
        have = f"the limit leaves {in_words(limit, math.floor)}"
        if free is not None:
            have = f"{in_words(free, math.floor)} are free, of which half is taken"
        raise TooLittleMemory(
            f"a {width}x{height} image needs at least {in_words(least, math.ceil)} of memory, and {have}: "
            f"{more_memory(free)}, or give a smaller image"
        )
    strip = min(max(_LARGE_STRIP, _LARGE_IN_SMALLEST * smallest), max(smallest, (limit - image) // 2))
    maps = max(0, limit - image - strip - int(_SPARE * limit))
    counted = walk(maps, strip)
    used, where = counted.workspace, Path(folder or tempfile.gettempdir())
    return Plan(
        height,
        width,
        strip,
        counted.fewest_rows,
        used.most_in_memory,
        used.most_in_files,
        used.most_maps_in_memory,
        used.most_maps_in_files,
        where,
        least,
        counted.work,
        lies_in_memory(where),
        free,
    )


def restore_streaming(
    model: Restorer,
    image: Tensor,
    limit: int,
    device: torch.device,
    folder: str | Path | None = None,
    progress: Callable[[float], None] = lambda done: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    free: int | None = None,
) -> tuple[Tensor, float]:
    """Restore [3, H, W] in [0, 1]; equal to ``model(image[None])[0]`` to float32 rounding.

    Args:
        limit: bytes of memory beyond what the process has already; feature maps that do not fit lie in files.
        folder: of the files; None: the system's folder for temporary ones.
        progress: called with the share of the work that is done.
        on_plan: called with what it will take, when that has been checked and before the work.
        free: see `plan`.

    Returns:
        The image, not clipped, in float32 on the CPU; and the smallest margin between a chosen prompt's share and the
        best one left out (infinite without prompts): below `CLOSE` the untiled network may choose otherwise.

    Raises:
        CplError: the limit is too small, or the disk has not the room; before any work, or, where others fill the disk
            meanwhile, in the middle.
    """
    _, height, width = image.shape
    needed = plan(model, height, width, limit, folder, free)
    needed.check_disk()
    on_plan(needed)
    workspace = Workspace(needed.maps_in_memory, needed.folder, remedy=needed.remedy)
    work = Walk(model, workspace, int(needed.strip / _HELD), device, progress=progress)
    work.total = needed.work
    with torch.inference_mode():
        restored = work.run(image.float().cpu())
    return restored, min(work.margins, default=float("inf"))


def about_margin(margin: float) -> str:
    """A line about the smallest margin of a router's choice."""
    close = f", below {CLOSE:g}: restored at once, the network might choose other prompts"
    return f"the smallest margin of the router's choice is {margin:.2g}{close if margin < CLOSE else ''}"
