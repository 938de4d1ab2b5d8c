"""Every benchmark on one device, a line of JSON for each size.

python -m benchmarks.gpu.cases --device cuda --seconds 200 [OP ...]

Measured in a process of its own (measure.py), which a failing kernel can end or stop for good: then that case says
so, and another process goes on with the next one. Cases that the time does not suffice for are named.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.gpu.stages import ROOT

CASE_SECONDS = 75.0  # most of it compilation; more means that it hangs
RESERVE = 4.0  # for naming what was not reached
Case = list[Any]  # op, index of the problem, dtype


def listed(ops: Sequence[str], device: str) -> list[Case]:
    """The first size of every op before the second of any; bfloat16, which the aims are written for, first."""
    found = []
    for position, op in enumerate(ops):
        bench = harness.load(op)
        problems = bench.problems[device]
        dtypes = sorted(bench.dtypes[device])  # bfloat16 sorts before float32
        if device == "cpu":  # a dry run: the smallest only
            sizes = [sum(problem.floor_elements.values()) for problem in problems]
            found.append((0, 0, position, [op, sizes.index(min(sizes)), dtypes[-1]]))
        else:
            found += [
                (i, d, position, [op, i, dtype])
                for i in range(len(problems))
                for d, dtype in enumerate(dtypes)
            ]
    return [case for *_, case in sorted(found)]


def measured(
    cases: Sequence[Case], command: Sequence[str], seconds: float, case_seconds: float
) -> Iterator[dict[str, Any]]:
    """``command`` is given the cases as JSON and answers with a line for each; something is yielded for each."""
    end = time.monotonic() + seconds
    left = list(cases)
    while left and time.monotonic() < end:
        worker = subprocess.Popen([*command, json.dumps(left)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=read_lines, args=(worker, lines), daemon=True)
        reader.start()
        try:
            trouble = ""
            while left and not trouble:
                wait = min(case_seconds, end - time.monotonic())
                try:
                    line = lines.get(timeout=max(0.0, wait))
                except queue.Empty:
                    if wait < case_seconds:  # the time of all is up, not that of this case
                        break
                    trouble = f"no result in {case_seconds:.0f} s"
                    continue
                if line is None:
                    trouble = f"the process ended with {worker.wait()}"
                elif line.startswith("{"):
                    yield json.loads(line)
                    left.pop(0)
                else:
                    print(line, end="", file=sys.stderr)
            if trouble:
                yield {"case": left.pop(0), "error": trouble}
        finally:
            worker.kill()
            worker.wait()
    for case in left:
        yield {"case": case, "error": "not measured: the time was up"}


def read_lines(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("ops", nargs="*", metavar="OP")
    args = parser.parse_args()
    begin = time.monotonic()
    cases = listed(args.ops or harness.OPS, args.device)
    seconds = args.seconds - RESERVE - (time.monotonic() - begin)
    command = [sys.executable, "-m", "benchmarks.gpu.measure", args.device]
    for line in measured(cases, command, seconds, CASE_SECONDS):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
