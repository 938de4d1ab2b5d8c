"""Peak memory of info_nce against torch's form as the batch grows: O((B + M) D) against B x M.

    python -m benchmarks.info_nce_memory [--out benchmarks/results/cpu_info_nce_memory.json]

One direction, D = 128, forward and backward of one call, each in a process of its own and beyond its inputs
(memory.py). What could not have the memory for it is not run: its row says what the logits alone would take. A
call of 65536 x 65536 is 3.3e12 operations, so its seconds are given too; they are of that one call, whatever else the
machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import cpl_kernels
from benchmarks import memory
from benchmarks.bench_info_nce import naive
from benchmarks.contrastive import TEMPERATURE
from benchmarks.facts import facts

FEATURES, BATCHES = 128, (4096, 16384, 65536)
COPIES = 4  # of the logits that torch's form holds at once at most: as divided, as softmax, and two gradients
WARM = 256  # rows of a call before: libraries are loaded, and their memory is no part of the peak


def ours(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return cpl_kernels.info_nce(query, key, temperature=TEMPERATURE, backend="native")


IMPLEMENTATIONS: dict[str, Callable[..., torch.Tensor]] = {"ours (native)": ours, "F.cross_entropy": naive}


def measure(name: str, batch: int, out: Path) -> None:
    """In the process of its own: the peak and the seconds of one call, into ``out``."""
    torch.set_num_threads(memory.THREADS)
    torch.manual_seed(0)
    leaves = [F.normalize(torch.randn(batch, FEATURES)).requires_grad_() for _ in range(2)]
    took = 0.0

    def call(rows: int = batch) -> Any:
        nonlocal took
        used = [x[:rows] for x in leaves]
        start = time.perf_counter()
        gradients = torch.autograd.grad(IMPLEMENTATIONS[name](*used), used)
        took = time.perf_counter() - start
        return gradients

    call(WARM)
    peak = memory.peak(call)
    out.write_text(json.dumps({"peak_bytes": peak, "seconds": took}))


def row(name: str, batch: int) -> dict[str, Any]:
    logits = 4 * batch * batch
    found: dict[str, Any] = {"name": name, "rows": batch, "keys": batch, "features": FEATURES}
    found["inputs_bytes"], found["logits_bytes"] = 2 * 4 * batch * FEATURES, logits
    if name != "ours (native)" and COPIES * logits > available():
        return {**found, "not_run": f"{COPIES} times the logits are more than the free memory"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        memory.in_a_process_of_its_own(lambda: measure(name, batch, out))
        return {**found, **json.loads(out.read_text())}


def available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_info_nce_memory.json"))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    args = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not live through a fork
    rows = []
    for batch in args.batches:
        for name in IMPLEMENTATIONS:
            rows.append(row(name, batch))
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {**facts(), "threads": memory.THREADS, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
