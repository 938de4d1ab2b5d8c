"""Limits on memory as users write them, what is free, and how the work shows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from cpl.models.restorer import MULTIPLE, Restorer
from cpl_kernels import works_in_strips

_UNITS = {"": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}
_HELD = 1.5  # times what is counted; measured beside what the next line says: 1.3 to 1.42 from 256x256 to 1024x1024
_BESIDE = 2**27  # bytes, at any size: what the allocator and the libraries keep
_NO_LIMIT = 2**60  # bytes, from which on a limit is none: version 1 of control groups has no word for that
_SHARE = 0.8  # of the free memory that an untiled restoring may take by this estimate


def parse_memory(limit: str | int) -> int:
    """Bytes of "2GB", "512 MB" (powers of 1024) or a number of bytes.

    Raises:
        ValueError: it is neither, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]b)?\s*", str(limit).lower())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size <= 0:
        raise ValueError(f"memory must be a number of bytes or like '2GB' or '512MB', got {limit!r}")
    return size


def in_words(size: int, rounded: Callable[[float], float] = round) -> str:
    """Like "1.25 GiB" or "300 MiB". ``rounded``: math.ceil for what is needed and math.floor for what there is, so that
    the number is one that would do, and never the same for both."""
    if size >= 2**30:
        return f"{rounded(100 * size / 2**30) / 100:.2f} GiB"
    return f"{rounded(size / 2**20)} MiB"


def untiled_bytes(model: Restorer, shape: Sequence[int], device: torch.device) -> int:
    """What a forward of [B, 3, H, W] without a graph holds at its worst, about: at full size the feed-forward or the
    attention (q, k and v before and after their convolution), the block's input and norm, and the encoder's share.
    Where blocks work in strips of rows: q, k and v, the block's input, what attention gives, the encoder's share."""
    dim = model.config.dim
    channels = 2 * dim
    hidden = int(model.config.ffn_expansion * channels)
    batch, _, *size = shape
    height, width = (side + -side % MULTIPLE for side in size)  # as the network pads: one row becomes eight
    features = max(3 * hidden + 3 * channels, 10 * channels) + 2 * dim
    if works_in_strips((batch, channels, height, width), (2 * hidden, channels, 1, 1), device):
        features = 5 * channels + 2 * dim
    return int(_HELD * 4 * batch * height * width * features) + _BESIDE


def free_where_short(model: Restorer, shape: Sequence[int], device: torch.device) -> int | None:
    """The free memory, in bytes, where an untiled restoring would want more than there is; else None.

    The feature maps lie with the CPU, whatever the device: the smaller of both.
    """
    if fits(model, shape, device):
        return None
    known = [free for free in (free_memory(device), free_memory(torch.device("cpu"))) if free is not None]
    return min(known)


def more_memory(free: int | None) -> str:
    """What to do where a limit is too small: one that was set, or half of the ``free`` memory, where none was."""
    return (
        "raise the limit (memory=, --memory)"
        if free is None
        else "free some memory or use tiles (tile=, --tile)"
    )


def fits(model: Restorer, shape: Sequence[int], device: torch.device) -> bool:
    """Whether the device has the free memory for a forward of [B, 3, H, W]; True where that cannot be known."""
    free = free_memory(device)
    return free is None or untiled_bytes(model, shape, device) <= _SHARE * free


def free_memory(device: torch.device) -> int | None:
    """In bytes; None where it cannot be known.

    On a GPU what torch holds without using it is free too. On Linux a container's own limit counts (control groups,
    of either version), not only what the machine has.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    known = [size for size in (_of_machine(), _of_container()) if size is not None]
    return min(known, default=None)


def _of_machine(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return 1024 * int(found[1]) if found else None


def _of_container(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit; pages of files, which the system gives back, are not counted as used."""
    left = (
        _left(groups, "memory.max", "memory.current", "inactive_file"),
        # Version 1 has a tree for memory alone, and its inactive_file leaves out the groups below.
        _left(groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    return min((size for size in left if size is not None), default=None)


def _left(group: Path, limit_name: str, used_name: str, cached_name: str) -> int | None:
    try:
        limit = (group / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None
        used = int((group / used_name).read_text())
        cached = re.search(rf"^{cached_name} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return max(0, int(limit) - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):
        return None  # no control groups here, or of the other version


def lies_in_memory(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the files in ``folder`` take memory and no disk (a tmpfs); False where that cannot be known."""
    try:
        device = os.stat(folder).st_dev
        lines = mounts.read_text(errors="replace").split("\n")
    except OSError:
        return False
    here = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:  # number, parent's, device, ..., " - ", kind, ...; see proc_pid_mountinfo(5)
        place, _, kind = line.partition(" - ")
        if place.split(" ")[2:3] == [here]:
            return kind.split(" ")[0] in ("tmpfs", "ramfs")
    return False


@contextlib.contextmanager
def showing(progress: bool | Callable[[float], None]) -> Iterator[Callable[[float], None]]:
    """A function to report the share of the work to; with True it moves a bar on a terminal."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda share: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        task = bars.add_task("restoring", total=1.0, visible=False)
        yield lambda share: bars.update(task, completed=share, visible=True)


def give_back() -> None:
    """Give the system the pages that the C library keeps of freed memory, where that is glibc: between blocks of one
    size that it keeps, those of another find no place, and a process held up to 170 MiB of them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
