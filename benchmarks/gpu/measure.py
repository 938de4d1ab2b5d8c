"""Times the cases that it is given, one after another.

python -m benchmarks.gpu.measure cuda '[[OP, PROBLEM, DTYPE], ...]'

A line of JSON for each. An implementation that fails or is wrong is named and the others are timed without it.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu import timing

SECONDS = 0.5  # of a group's rounds: events are exact, and the time goes to compilers
MOST_COPIES = 64  # tiny inputs stay in the cache whatever is done; they are bound by launches, not by memory


def case(op: str, index: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """The rows of one size, both passes; what does not run here; what failed."""
    bench = harness.load(op)
    problem = bench.problems[device.type][index]
    functions, absent, failed = right_ones(bench, problem, device, getattr(torch, dtype))
    torch.manual_seed(0)
    first = problem.make(device, getattr(torch, dtype))
    size = sum(x.nbytes for x in (*first[0], first[1]))
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    copies = timing.copies_past(cache, size, MOST_COPIES)
    inputs = [first, *(problem.make(device, getattr(torch, dtype)) for _ in range(copies - 1))]
    rows = [
        row
        for passes in harness.PASSES
        if functions
        for row in timed(bench, problem, dtype, passes, functions, inputs, device, failed)
    ]
    return {
        "case": [op, index, dtype],
        "shape": problem.id,
        "inputs_in_turn": copies,
        "past_l2": copies * size > 2 * cache,
        "rows": rows,
        "absent": absent,
        "failed": failed,
    }


def right_ones(
    bench: harness.Bench, problem: harness.Problem, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, harness.Function], dict[str, str], dict[str, str]]:
    """The functions that run and agree with the definition; why others do not run; what is wrong with the rest."""
    functions: dict[str, harness.Function] = {}
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, factory in bench.implementations.items():
        made: list[harness.Function] = []

        def keep(factory: Any = factory, made: list[harness.Function] = made) -> harness.Function:
            made.append(factory())
            return made[0]

        try:
            _, why = harness.runs(replace(bench, implementations={name: keep}), problem, device, dtype)
        except Exception as error:  # also what a compiler or a driver raises
            failed[name] = short(error)
            continue
        absent |= why
        if not why:
            functions[name] = problem.bind(made[0], device)
    return functions, absent, failed


def timed(
    bench: harness.Bench,
    problem: harness.Problem,
    dtype: str,
    passes: str,
    functions: dict[str, harness.Function],
    inputs: list[tuple[list[Tensor], Tensor]],
    device: torch.device,
    failed: dict[str, str],
) -> list[dict[str, Any]]:
    """A row for each function: seconds of one call, over all ``inputs`` in turn, all functions taking turns."""
    calls: harness.Calls = {}
    how: dict[str, str] = {}
    peak: dict[str, int | None] = {}
    for name, function in functions.items():
        each = [harness.passes_of(function, leaves, dy)[passes] for leaves, dy in inputs]
        try:
            peak[name] = peak_bytes(each[0], device)
            calls[name], how[name] = timing.replayable(each, device)
        except Exception as error:
            failed[f"{name}, {passes}"] = short(error)
    if not calls:
        return []
    times = harness.interleaved(calls, timing.clock(device))
    calls.clear()  # with the graphs goes the memory that they hold
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    ratios = harness.ratios(times, harness.unit_of(times))
    moved = problem.floor_elements[passes] * getattr(torch, dtype).itemsize
    rows = []
    for name, taken in times.items():
        seconds = statistics.median(taken) / len(inputs)
        rows.append(
            {
                "group": bench.group(problem, dtype, passes),
                "name": name,
                "seconds": seconds,
                "rounds": len(taken),
                **ratios[name],
                "floor_bytes": moved,
                "gb_per_s": moved / seconds / 1e9,
                "how": how[name],
                "peak_bytes": peak[name],
            }
        )
        if passes in problem.flops:
            rows[-1]["tflop_per_s"] = problem.flops[passes] / seconds / 1e12
    return rows


def peak_bytes(call: timing.Call, device: torch.device) -> int | None:
    """How far torch's allocations rise in one call, its result held; None on the CPU, where torch does not count."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]


def main(kind: str, cases: str) -> None:
    device = torch.device(kind)
    harness.SECONDS = SECONDS
    if kind == "cpu":  # a dry run: once, and nothing compiled by torch.compile
        harness.SECONDS, harness.LEAST_ROUNDS, harness.MOST_ROUNDS, harness.WARMUP = 0.0, 1, 1, 0
        torch._dynamo.config.disable = True
    for op, index, dtype in json.loads(cases):
        try:
            result = case(op, index, dtype, device)
        except Exception as error:
            traceback.print_exc()
            result = {"case": [op, index, dtype], "error": short(error)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
