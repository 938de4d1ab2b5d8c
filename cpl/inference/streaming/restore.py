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

# Bytes of what is computed at a time, beyond which more is not faster. On a CPU tensors of up to 32 MiB are taken again
# from the allocator; larger ones the system gives page by page each time, which took a third of the work.
_WINDOW = {"cpu": 64 * 2**20}
_WINDOW_ELSEWHERE = 256 * 2**20
_CPU = torch.device("cpu")
CLOSE = 1e-5  # a router's margin from which on the untiled network chooses the same prompts
_SPARE = 0.05  # of the limit, left free: 12 megapixels within 2 GiB held 0.02 % more than that without it
_WEIGHTS = 4  # times those of the largest layer: a convolution puts them in another order; measured up to 3.3
_HELD = 1.6  # times what a window's arithmetic holds by the count: allocators, and the kernels' own scratch


@dataclass(frozen=True)
class Plan:
    """What restoring an image will take, in bytes where nothing else is said.

    Attributes:
        height, width: of the image, in pixels.
        window: of what is computed at a time.
        least_sides: rows and columns of the smallest part of a feature map that is computed at a time; None: every map
            is in one part.
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
    window: int
    least_sides: tuple[int, int] | None
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
        parts = "in one window"
        if self.least_sides is not None:
            rows, columns = self.least_sides
            parts = f"in windows of about {columns}x{rows} or more"
        memory, files = self.maps_in_memory + self.window, self.maps_in_files
        return (
            f"{self.width}x{self.height} {parts}, in about {in_words(memory)} of memory with "
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
    device: torch.device = _CPU,
) -> Plan:
    """For an image of that size, with ``limit`` bytes of memory beyond what the process has already.

    ``free``: None if a user set that limit; else the bytes of memory that are free, half of which it is.

    Raises:
        TooLittleMemory: even the smallest plan needs more; the message says how much.
    """

    def walk(memory: int, window: int = 0) -> Walk:
        workspace = Workspace(memory, None, counts_only=True)
        made = Walk(model, workspace, int(window / _HELD), _CPU, computes=False)
        made.run(torch.empty(3, height, width, device="meta"))
        return made

    image = 2 * 4 * 3 * height * width  # given and made
    beside = image + _WEIGHTS * 4 * max(weight.numel() for weight in model.parameters())
    smallest = int(_HELD * walk(0).smallest_window)
    least = beside + smallest
    if limit < least:
        have = f"the limit leaves {in_words(limit, math.floor)}"
        if free is not None:
            have = f"{in_words(free, math.floor)} are free, of which half is taken"
        raise TooLittleMemory(
            f"a {width}x{height} image needs at least {in_words(least, math.ceil)} of memory, and {have}: "
            f"{more_memory(free)}, or give a smaller image"
        )
    most = _WINDOW.get(device.type, _WINDOW_ELSEWHERE)
    window = max(smallest, min(most, (limit - beside) // 2))
    maps = max(0, limit - beside - window - int(_SPARE * limit))
    counted = walk(maps, window)
    used, where = counted.workspace, Path(folder or tempfile.gettempdir())
    return Plan(
        height,
        width,
        window,
        counted.least_sides,
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
    needed = plan(model, height, width, limit, folder, free, device)
    needed.check_disk()
    on_plan(needed)
    workspace = Workspace(needed.maps_in_memory, needed.folder, remedy=needed.remedy)
    work = Walk(model, workspace, int(needed.window / _HELD), device, progress=progress)
    work.total = needed.work
    with torch.inference_mode():
        restored = work.run(image.float().cpu())
    return restored, min(work.margins, default=float("inf"))


def about_margin(margin: float) -> str:
    """A line about the smallest margin of a router's choice."""
    close = f", below {CLOSE:g}: restored at once, the network might choose other prompts"
    return f"the smallest margin of the router's choice is {margin:.2g}{close if margin < CLOSE else ''}"
