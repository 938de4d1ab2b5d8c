"""Peak memory of a step on a CPU: python -m benchmarks.step.peaks SPEC THREADS NAME ...

A line of JSON for each name, measured as benchmarks/memory.py does: in a fork of a process that has no thread and no
tensor, the second step, how far the resident set rises above the weights and the optimizer's state. What
torch.compile makes is left out: it would be compiled again. Of what is freed, blocks of a MiB or more go back to the
system at once; by itself malloc keeps some for later, and how much hangs on the order of sizes, not on the step.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable

import torch

from benchmarks import memory
from benchmarks.gpu.stages import ROOT, json_lines
from benchmarks.step import cases
from benchmarks.step.cases import Case, Step, Variant

M_MMAP_THRESHOLD = -3  # malloc.h


def of(case: Case, names: tuple[str, ...], heard: Callable[[], None]) -> dict[str, int | None]:
    """Name -> bytes of those that could be measured; ``heard`` is called for each, at 256x256 after a minute or so."""
    command = [sys.executable, "-m", "benchmarks.step.peaks", str(case), str(torch.get_num_threads())]
    peaks: dict[str, int | None] = {}
    with subprocess.Popen([*command, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        for line in worker.stdout or ():
            peaks |= {found["name"]: found["peak_bytes"] for found in json_lines(line)}
            heard()
    return peaks


def main(spec: str, threads: str, *names: str) -> None:
    torch.set_num_threads(1)  # before the fork: see memory.py
    case = Case.parse(spec)
    listed = cases.variants(case, "cpu", compile_ours=True)
    for name in names:
        if listed[name].compiled:
            continue
        try:
            memory.in_a_process_of_its_own(lambda n=name: _print_peak(case, n, listed[n], int(threads)))
        except RuntimeError as error:  # killed for memory: those that take less may have enough
            print(f"peak memory of {name}: {error}", file=sys.stderr, flush=True)
            print(json.dumps({"name": name, "peak_bytes": None}), flush=True)


def _print_peak(case: Case, name: str, variant: Variant, threads: int) -> None:
    torch.set_num_threads(threads)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    cpu = torch.device("cpu")
    step = Step(case, variant, cpu, cases.fresh_weights(case.model, cpu))
    step.run()
    print(json.dumps({"name": name, "peak_bytes": memory.peak(step.run)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
