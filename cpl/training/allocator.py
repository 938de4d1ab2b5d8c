"""Keep the memory that a step frees for the next step, where training runs on a CPU."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for the rest of this process; True if it agreed.

    By default a large tensor's memory goes back to the system as soon as it is freed, and the next step
    gets it anew, page by page, each one zeroed by the kernel first, although a training step allocates the same
    sizes again and again. The process then stays as large as its largest step. No other C library has
    this; there nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
