"""Peak memory of one call of every implementation of an op: python -m benchmarks.memory OP DTYPE SIZES

Prints a line of JSON for each pass and implementation that runs here, at the first SIZES sizes of the op. Each
implementation is measured in a process of its own, so that nothing left by another is reused: a fork of one that has
imported torch and its compiler and nothing more (no thread, no tensor), which saves the seconds of the import. There
the call is made once (compilation, caches of libraries), what was freed goes back to the system, the system's mark of
the largest resident set is reset, and the call is made again; kept is how far that mark then rose. Outputs and what is
kept for the backward count, inputs do not. C++ scratch memory counts too, which torch's own profiler would not see.
Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cpl_kernels
from benchmarks import harness

THREADS = 2
MOST_SECONDS = 300  # of one of them, most of it compilation; more means that it hangs


def main(op: str, dtype: str, sizes: str) -> None:
    # A pool of threads does not live through a fork, and a child that waited for one would wait for ever.
    torch.set_num_threads(1)
    importlib.import_module("torch._inductor.compile_fx")
    bench = harness.load(op)
    for problem in range(int(sizes)):
        for name in bench.rows(bench.problems["cpu"][problem]):
            in_a_process_of_its_own(lambda p=problem, n=name: _print_peaks(bench, p, dtype, n))


def in_a_process_of_its_own(work: Callable[[], None]) -> None:
    """Run ``work`` in a fork of this process and wait for it.

    Raises:
        RuntimeError: it did not end well; its traceback is on stderr.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(MOST_SECONDS)
        status = 1
        try:
            work()
            sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # never back into the loop of the parent
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise RuntimeError(f"the process that measures ended with {status}")


def give_back() -> None:
    """Gives what nobody uses any more to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak(call: Callable[[], Any]) -> int:
    """How far the resident set rises above where it is, while ``call`` runs and its result is held, in bytes."""
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    result = call()
    risen = _status("VmHWM") - before
    del result
    return max(0, risen)


def _print_peaks(bench: harness.Bench, problem: int, dtype: str, name: str) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    size, cpu = bench.problems["cpu"][problem], torch.device("cpu")
    leaves, dy = size.make(cpu, getattr(torch, dtype))
    try:
        calls = harness.passes_of(size.bind(bench.rows(size)[name](), cpu), leaves, dy)
        for passes in harness.PASSES:
            calls[passes]()
            found = {"problem": problem, "passes": passes, "name": name, "peak_bytes": peak(calls[passes])}
            print(json.dumps(found))
    except (harness.Unavailable, ImportError, cpl_kernels.BackendError):
        return  # the timing says why it is absent


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
