"""Limits on memory as users write them, what is free, and how the work shows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from cpl.models.restorer import Restorer
from cpl.nn.strips import rows_of_a_strip

_UNITS = {"": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}
_HELD = 1.3  # times what is counted; measured 1.0 to 1.3 at 1024x1024 and 1536x1536
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


def in_words(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def untiled_bytes(model: Restorer, shape: Sequence[int], device: torch.device) -> int:
    """What a forward of [B, 3, H, W] without a graph holds at its worst, about: at full size the feed-forward or the
    attention (q, k and v before and after their convolution), the block's input and norm, and the encoder's share.
    Where blocks work in strips of rows: q, k and v, the block's input, what attention gives, the encoder's share."""
    dim = model.config.dim
    channels = 2 * dim
    hidden = int(model.config.ffn_expansion * channels)
    batch, _, height, width = shape
    features = max(3 * hidden + 3 * channels, 10 * channels) + 2 * dim
    if rows_of_a_strip(shape, 2 * hidden, 4, device) is not None:
        features = 5 * channels + 2 * dim
    return int(_HELD * 4 * batch * height * width * features)


def limit_where_free_memory_is_short(
    model: Restorer, shape: Sequence[int], device: torch.device
) -> int | None:
    """Half of the free memory, in bytes, where an untiled restoring would want more than there is; else None.

    The feature maps lie with the CPU, whatever the device: half of the smaller one's.
    """
    if fits(model, shape, device):
        return None
    known = [free for free in (free_memory(device), free_memory(torch.device("cpu"))) if free is not None]
    return min(known) // 2


def fits(model: Restorer, shape: Sequence[int], device: torch.device) -> bool:
    """Whether the device has the free memory for a forward of [B, 3, H, W]; True where that cannot be known."""
    free = free_memory(device)
    return free is None or untiled_bytes(model, shape, device) <= _SHARE * free


def free_memory(device: torch.device) -> int | None:
    """In bytes; None where it cannot be known.

    On a GPU what torch holds without using it is free too. On Linux a container's own limit counts (control groups,
    version 2), not only what the machine has.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    known = [size for size in (_of_machine(), _of_container()) if size is not None]
    return min(known, default=None)


def _of_machine(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return 1024 * int(found[1]) if found else None


def _of_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit; pages of files, which the system gives back, are not counted as used."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return max(0, int(limit) - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):
        return None  # no control groups here, or of another version


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
