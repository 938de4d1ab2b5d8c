"""Memory that a call of info_nce works in, kept for the thread's next call.

A call takes some tens of MiB and gives them back at its end. malloc has that much from the system page by page, and
often gives it back as well: a call with its pages to be had anew took up to 1.6 times as long.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MOST = 2**26  # bytes that a thread keeps
ALIGNMENT = 64


class _Kept(threading.local):
    memory: Tensor | None = None  # None as well while a call has it
    wanted = 0  # bytes, by the call that took most


_KEPT = _Kept()


def forget() -> None:
    """Gives this thread's memory back."""
    _KEPT.memory, _KEPT.wanted = None, 0


class Workspace:
    """Memory of one call: of what is kept, as far as that goes, and fresh. Its pieces are valid as long as it lives."""

    def __init__(self) -> None:
        self._taken, self._wanted, self._keeper = 0, 0, _KEPT
        kept, _KEPT.memory = _KEPT.memory, None  # no other call on this thread has it meanwhile
        if kept is None or kept.numel() < _KEPT.wanted:
            kept = torch.empty(min(MOST, _KEPT.wanted), dtype=torch.uint8)
        self._memory = kept

    def __del__(self) -> None:
        keeper = self._keeper  # not the global, which is gone when the interpreter ends
        keeper.wanted = min(MOST, max(keeper.wanted, self._wanted))
        if keeper.memory is None:
            keeper.memory = self._memory

    def bytes(self, count: int) -> Tensor:
        """[count] uint8, from a multiple of ALIGNMENT on."""
        self._wanted += count + ALIGNMENT
        address = self._memory.data_ptr() + self._taken
        first = self._taken + -address % ALIGNMENT
        if first + count <= self._memory.numel():
            self._taken = first + count
            return self._memory[first : first + count]
        fresh = torch.empty(count, dtype=torch.uint8)
        if fresh.data_ptr() % ALIGNMENT == 0:  # as torch has it, and then nothing lies behind the last byte
            return fresh
        fresh = torch.empty(count + ALIGNMENT, dtype=torch.uint8)
        return fresh[-fresh.data_ptr() % ALIGNMENT :][:count]

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return self.bytes(rows * columns * dtype.itemsize).view(dtype).view(rows, columns)
