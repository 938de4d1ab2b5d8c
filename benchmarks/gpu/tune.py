"""Times an op's kernels with other values of its module's constants (tiles, warps), many compiled at once.

    python -m benchmarks.gpu.tune JOBS.json [--device cuda] [--workers 8] [--seconds 100]

JOBS.json: a list of {"op": OP, "backend": "triton" | "cuda", "set": {CONSTANT: VALUE, ...}, "bench": NAME, "sizes":
[I, ...], "dtypes": [NAME, ...]}; all but op may be left out: the backend is triton, nothing is set, the benchmark is
the op's own, and all its sizes and dtypes are timed. A line of JSON for each size and dtype: microseconds of the
forward, and of the forward with the backward, as benchmarks/gpu/measure.py takes them. Each job is a process of its
own, which compiles beside the others and holds a lock while it times.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.gpu import timing
from benchmarks.gpu.measure import MOST_COPIES, short
from benchmarks.gpu.stages import ROOT

ROUNDS = 7


def set_constants(op: str, backend: str, values: dict[str, Any]) -> None:
    """Raises AttributeError for one that the module does not have."""
    module = importlib.import_module(f"cpl_kernels.{op}.{backend}")
    for name, value in values.items():
        before = getattr(module, name)
        setattr(module, name, tuple(value) if isinstance(before, tuple) else value)


def timed(job: dict[str, Any], device: torch.device, lock: Path) -> None:
    op, backend = job["op"], job.get("backend", "triton")
    try:
        set_constants(op, backend, job.get("set", {}))
        bench = harness.load(job.get("bench", op))
        function = bench.implementations[f"{harness.OURS} ({backend})"]()
    except Exception as error:
        print(json.dumps({**job, "error": short(error)}), flush=True)
        return
    problems = bench.problems[device.type]
    for index in job.get("sizes", range(len(problems))):
        for dtype in job.get("dtypes", bench.dtypes[device.type]):
            about = {**job, "shape": problems[index].id, "dtype": dtype}
            try:
                about |= case(problems[index], function, getattr(torch, dtype), device, lock)
            except Exception as error:  # what a compiler or a driver raises; the next is worth as much
                about["error"] = short(error)
            print(json.dumps(about), flush=True)


def case(
    problem: harness.Problem, function: harness.Function, dtype: torch.dtype, device: torch.device, lock: Path
) -> dict[str, float]:
    """Microseconds of each pass; all is compiled before the lock is asked for."""
    bound = problem.bind(function, device)
    first = problem.make(device, dtype)
    for call in harness.passes_of(bound, *first).values():
        call()
    size = sum(x.nbytes for x in (*first[0], first[1]))
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    copies = timing.copies_past(cache, size, MOST_COPIES)
    found, clock = {}, timing.clock(device)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        inputs = [first, *(problem.make(device, dtype) for _ in range(copies - 1))]
        for passes in harness.PASSES:
            calls = [harness.passes_of(bound, leaves, dy)[passes] for leaves, dy in inputs]
            run, _ = timing.replayable(calls, device)
            clock(run)
            found[passes] = 1e6 * statistics.median(clock(run) for _ in range(ROUNDS)) / copies
    return found


def run_all(jobs: Sequence[dict[str, Any]], device: str, workers: int, seconds: float) -> None:
    """So many at a time; what is not begun when the time is up is named."""
    end, running = time.monotonic() + seconds, []
    with tempfile.NamedTemporaryFile() as lock:
        for job in jobs:
            while len(running) >= workers and time.monotonic() < end:
                running = [process for process in running if process.poll() is None]
                time.sleep(0.02)
            if time.monotonic() >= end:
                print(json.dumps({**job, "error": "not measured: the time was up"}), flush=True)
                continue
            command = [
                sys.executable,
                "-m",
                "benchmarks.gpu.tune",
                "--device",
                device,
                "--job",
                json.dumps(job),
            ]
            running.append(subprocess.Popen([*command, "--lock", lock.name], cwd=ROOT))
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="?", type=Path, metavar="JOBS.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--lock", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        timed(args.job, torch.device(args.device), args.lock)
    elif args.jobs is None:
        parser.error("JOBS.json: which settings to time")
    else:
        run_all(json.loads(args.jobs.read_text()), args.device, args.workers, args.seconds)


if __name__ == "__main__":
    main()
