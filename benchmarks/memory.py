"""Peak memory of one call, in bytes: python -m benchmarks.memory OP PROBLEM DTYPE PASS NAME

A process of its own, so that nothing left by another call is reused. The call is made once (compilation, caches of
libraries), what was freed goes back to the system, the system's mark of the largest resident set is reset, and the
call is made again; printed is how far that mark then rose. Outputs and what is kept for the backward count, inputs
do not. C++ scratch memory counts too, which torch's own profiler would not see. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

from benchmarks import harness

THREADS = 2


def main(op: str, problem: str, dtype: str, passes: str, name: str) -> None:
    torch.set_num_threads(THREADS)
    bench = harness.load(op)
    torch.manual_seed(0)
    size, cpu = bench.problems["cpu"][int(problem)], torch.device("cpu")
    leaves, dy = size.make(cpu, getattr(torch, dtype))
    call = harness.passes_of(size.bind(bench.implementations[name](), cpu), leaves, dy)[passes]
    call()
    print(peak(call))


def peak(call) -> int:  # type: ignore[no-untyped-def]
    """How far the resident set rises above where it is, while ``call`` runs and its result is held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    result = call()
    risen = _status("VmHWM") - before
    del result
    return max(0, risen)


def _status(key: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":")
    )
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
