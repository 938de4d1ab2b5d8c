"""Runs the CUDA backend of an op in the emulator, behind the op's own Python code.

``on_cpu("layer_norm2d", seed)`` makes ``backend="cuda"`` serve CPU tensors: cpl_kernels/<op>/cuda.py
runs as it is, layouts and scratch buffers included, and only the core that it calls is another. So
the parity harness feeds these kernels as it feeds every backend.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from cpl_kernels import backends
from tests.cuda_host import build

TIMEOUT = 300  # seconds; a kernel that spins forever must not hang the tests
ENVIRONMENT = {
    # No fake stacks: fibers have stacks enough. No leak check: it needs ptrace, which sandboxes forbid.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:redzone=2048:max_redzone=2048",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


LARGE = 2**28  # bytes; of a tensor that spans more, only the elements travel


class EmulatorError(AssertionError):
    """A sanitizer or the emulator stopped the kernel; the message is its report."""


class Core:
    """Stands in for cpl_kernels._core: ``core.<entry>(*arguments)`` runs in a process of its own."""

    def __init__(self, executable: Path, seed: int) -> None:
        self._executable, self._seed = executable, seed
        self._tensors: list[Tensor] = []  # kept: a freed tensor's address could be another's

    def with_seed(self, seed: int) -> Core:
        return Core(self._executable, seed)

    def remember(self, tensor: Tensor) -> None:
        """Called for every ``tensor.data_ptr()``: how an address is known to be so and so large."""
        self._tensors.append(tensor)

    def __getattr__(self, entry: str) -> Callable[..., int | None]:
        if entry.startswith("_"):
            raise AttributeError(entry)
        return lambda *arguments: self.call(entry, *arguments)

    def call(self, entry: str, *arguments: Any) -> int | None:
        spans: dict[int, _Span] = {}
        named = set(_integers(arguments))
        for tensor in self._tensors:
            address = _data_ptr(tensor)
            if address in named and (address not in spans or spans[address].size < _extent(tensor)):
                spans[address] = _Span(tensor)
        before = [span.read() for span in spans.values()]
        head = f"{entry} {self._seed} {len(spans)}\n"
        head += "".join(f"{address} {span}\n" for address, span in spans.items())
        head += " ".join(map(_encode, arguments)) + "\n"
        returned, reply = self._run(head.encode() + b"".join(before))
        at = 0
        for span, old in zip(spans.values(), before, strict=True):
            span.write(reply[at : at + len(old)], old)
            at += len(old)
        assert at == len(reply), f"{entry}: the reply has {len(reply)} bytes, expected {at}"
        return None if returned == "None" else int(returned)

    def _run(self, request: bytes) -> tuple[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "request", Path(folder) / "reply"
            source.write_bytes(request)
            ran = subprocess.run(
                [str(self._executable), str(source), str(target)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                env=ENVIRONMENT,
            )
            if ran.returncode != 0:
                raise EmulatorError(ran.stderr.strip() or f"exit status {ran.returncode}, and no word why")
            returned, _, rest = target.read_bytes().partition(b"\n")
        return returned.decode(), rest


@contextlib.contextmanager
def on_cpu(op: str, seed: int, executable: Path | None = None) -> Iterator[Core]:
    """Make the CUDA backend of ``op`` serve CPU tensors, thread order drawn from ``seed``."""
    core = Core(executable or build.op(op), seed)
    backend = importlib.import_module(f"cpl_kernels.{op}.cuda")
    cannot = backends._cannot
    with tracking(core), contextlib.ExitStack() as stack:
        for where, name, new in (
            (
                backends,
                "_cannot",
                lambda op, name, there: None if name == "cuda" else cannot(op, name, there),
            ),
            (backend, "why_not", lambda *_: None),
            (backend, "core", lambda: core),
            (torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0)),
        ):
            stack.enter_context(mock.patch.object(where, name, new))
        yield core


@contextlib.contextmanager
def tracking(core: Core) -> Iterator[None]:
    """Let ``core`` know of every tensor whose address is taken."""

    outer = torch.Tensor.data_ptr  # another core's, for an op that is made of two

    def data_ptr(tensor: Tensor) -> int:
        core.remember(tensor)
        return outer(tensor)

    with mock.patch.object(torch.Tensor, "data_ptr", data_ptr):
        yield


_data_ptr = torch.Tensor.data_ptr


class _Span:
    """The memory from the first byte of a tensor to its last, and what of it travels: the gaps as well
    (a kernel may wrongly write there), unless they are too large to."""

    def __init__(self, tensor: Tensor) -> None:
        self.address, self.size = _data_ptr(tensor), _extent(tensor)
        self._runs = [(0, self.size)]
        if self.size > LARGE:
            item = tensor.element_size()
            places = np.zeros((), np.int64)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                places = np.add.outer(places, np.arange(size, dtype=np.int64) * stride * item)
            self._runs = [(int(offset), item) for offset in np.unique(places)]

    def __str__(self) -> str:
        return " ".join(map(str, (self.size, len(self._runs), *(n for run in self._runs for n in run))))

    def read(self) -> bytes:
        return b"".join(ctypes.string_at(self.address + offset, size) for offset, size in self._runs)

    def write(self, new: bytes, old: bytes) -> None:
        """Only what changed: tensors may interleave in memory, and each has a copy of its own over there."""
        at = 0
        for offset, size in self._runs:
            was, now = (np.frombuffer(b, np.uint8, size, at) for b in (old, new))
            target = np.frombuffer((ctypes.c_uint8 * size).from_address(self.address + offset), np.uint8)
            np.copyto(target, now, where=now != was)
            at += size


def _extent(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _integers(part)
    elif isinstance(value, int):
        yield value


def _encode(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        kind = "t" if isinstance(value, tuple) else "l"
        return " ".join([kind, str(len(value)), *map(_encode, value)])
    if isinstance(value, float):
        return f"f {value.hex()}"
    if isinstance(value, (bool, int)):
        return f"i {int(value)}"
    raise TypeError(
        f"an argument of the core is an int, a float, a tuple or a list, got {type(value).__name__}"
    )
