"""A whole training or inference step of the network, ours against plain PyTorch.

    python -m benchmarks.bench_step --device cpu|cuda --out FILE.json [--seconds S] [--cases CASE ...] [--profile]
    python -m benchmarks.step.page FILE.json [--chart FILE.png] > FILE.md

A training step is forward, L1 loss, backward and AdamW (fused); inference is a forward under no_grad. A case is
written MODEL:BxHxW:float32|bfloat16:train|inference; bfloat16 is autocast. Behind it may stand ":blocks" or ":whole",
where torch.compile takes part, of each block or of the network at once, or ":profile", for the kernels that take the
time. FILE.json is written anew after each case, so what was measured before an interruption stays. An implementation
that fails, crashes or is not ready in --ready-seconds is named and left out, and the others are measured.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import idle
from benchmarks.facts import facts
from benchmarks.gpu import machine
from benchmarks.gpu.cases import read_lines
from benchmarks.gpu.stages import ROOT, end_session, json_lines, write
from benchmarks.step.cases import DEFAULT, Case

READY_SECONDS = {"cuda": 100.0, "cpu": 900.0}
QUIET = 90.0  # more than that past the time to get ready, and the process hangs
SECONDS = {"cuda": 200.0, "cpu": 7200.0}
LEAST_SECONDS = 5.0  # a process could not even import torch


def measured(
    specs: Sequence[str], device: str, seconds: float, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Something for each case, in its order. A process that ends or hangs costs the implementation that it was at."""
    end = time.monotonic() + seconds
    left = list(specs)
    left_out: dict[str, str] = {}  # of the first of those that are left
    while left and end - time.monotonic() > LEAST_SECONDS:
        asked = json.dumps({**options, "cases": left, "left_out": left_out})
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step.measure", device, f"{end - time.monotonic():.1f}", asked],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that compilers of its own are ended with it
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=read_lines, args=(worker, lines), daemon=True).start()
        trying, why, answered = None, "", False
        try:
            while left and not why:
                quiet = options["ready_seconds"] + QUIET
                wait = min(quiet, end - time.monotonic())
                try:
                    line = lines.get(timeout=max(0.0, wait))
                except queue.Empty:
                    if wait < quiet:  # the time of all is up
                        break
                    why = f"no word in {quiet:.0f} s"
                    continue
                said = next(iter(json_lines(line or "")), {})
                if line is None:
                    why = f"the process ended with {worker.wait()}"
                elif "trying" in said:
                    trying, answered = said["trying"], False
                elif "lost" in said:
                    why = said["lost"]
                elif "case" in said:
                    yield said
                    left.pop(0)
                    trying, left_out, answered = None, {}, True
        finally:
            end_session(worker)
        if trying is not None and why:
            left_out[trying] = why
        elif why and not answered:  # one that has answered may end: the next one goes on
            yield {"case": left.pop(0), "error": why}
            left_out = {}
    for spec in left:
        yield {"case": spec, "error": "not measured: the time was up"}


def about(device: str, dry: bool) -> dict[str, Any]:
    """What the result says of itself."""
    found = {**facts(), "machine": machine.device(device), "dry": dry}
    if device == "cuda" or dry:
        found["machine_was"] = "not checked to be idle"
    if device == "cuda":
        found |= {
            "torch_cuda": torch.version.cuda,
            "tf32": {
                "convolution": torch.backends.cudnn.allow_tf32,
                "matmul": torch.get_float32_matmul_precision(),
            },
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return found


def listed(given: Sequence[str], device: str, profile: bool) -> list[str]:
    """The cases; a profile of the first comes right behind those of the same step."""
    specs = [str(Case.parse(spec)) for spec in given or DEFAULT[device]]
    if profile:
        step = ":".join(specs[0].split(":")[:4])
        behind = 1 + max(i for i, spec in enumerate(specs[:2]) if spec.startswith(step))
        specs.insert(behind, f"{step}:profile")
    return specs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="instead of all")
    parser.add_argument("--seconds", type=float, help="for all (default: 200 on cuda, 7200 on cpu)")
    parser.add_argument(
        "--ready-seconds",
        type=float,
        help="for one implementation to compile and run once (default: 100 on cuda, 900 on cpu)",
    )
    parser.add_argument("--compile-ours", action="store_true", help="ours under torch.compile too")
    parser.add_argument("--profile", action="store_true", help="the first case's kernels too")
    parser.add_argument("--dry", action="store_true", help="one round of each, on any machine")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    try:
        specs = listed(args.cases, args.device, args.profile)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here that torch can use; --device cpu measures on the CPU")
    if args.device == "cpu" and not args.dry:
        idle.require()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running process is ended too
    options = {
        "ready_seconds": args.ready_seconds or READY_SECONDS[args.device],
        "compile_ours": args.compile_ours,
        "dry": args.dry,
    }
    result = {**about(args.device, args.dry), "cases": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    seconds = (args.seconds or SECONDS[args.device]) - (time.monotonic() - begin)
    for found in measured(specs, args.device, seconds, options):
        result["cases"].append(found)
        write(args.out, json.dumps(result, indent=1) + "\n")
        print(f"{found['case']}: {found.get('error', 'done')}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
