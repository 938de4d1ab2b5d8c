"""The rows of a declaration as pytest-benchmark knows them: one a group and implementation.

A group is timed once, all its implementations in turn (harness.interleaved); its rows then replay the times that
were taken through pytest-benchmark's own clock, so that its tables and files are as ever.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import copies, harness


@dataclass(frozen=True)
class Row:
    op: str
    problem: int  # index in bench.problems["cpu"]
    dtype: str
    passes: str
    name: str

    @property
    def id(self) -> str:
        problem = harness.load(self.op).problems["cpu"][self.problem]
        return f"{problem.id}-{self.dtype}-{self.passes}-{self.name}"


sizes: int | None = None  # how many of an op's, from the first on; None: all


def of(bench: harness.Bench) -> list[Row]:
    return [
        Row(bench.op, i, dtype, passes, name)
        for i, problem in enumerate(bench.problems["cpu"][:sizes])
        for dtype in bench.dtypes["cpu"]
        for passes in harness.PASSES
        for name in bench.rows(problem)
    ]


class Replay:
    """A clock that shows, from one pair of looks to the next, times that were taken before."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._started = False

    def load(self, times: list[float]) -> None:
        self._times, self._started = deque(times), False

    def __call__(self) -> float:
        self._started = not self._started
        return 0.0 if self._started else self._times.popleft()


CLOCK = Replay()


def measure(benchmark: Any, row: Row) -> None:
    """What the one test of a benchmark module does with a row."""
    bench = harness.load(row.op)
    problem = bench.problems["cpu"][row.problem]
    times, absent = _group(row.op, row.problem, row.dtype, row.passes)
    if row.name in absent:
        pytest.skip(reason=absent[row.name])
    benchmark.group = bench.group(problem, row.dtype, row.passes)
    benchmark.name = row.name
    taken = times[row.name]
    CLOCK.load(taken)
    benchmark.pedantic(lambda: None, rounds=len(taken), iterations=1)
    itemsize = getattr(torch, row.dtype).itemsize
    moved = problem.floor_elements[row.passes] * itemsize
    rate = moved / benchmark.stats.stats.median / 1e9
    benchmark.extra_info.update(
        **harness.ratios(times, harness.unit_of(times))[row.name],
        floor_bytes=moved,
        gb_per_s=rate,
        share_of_copy_bandwidth=rate / copies.gb_per_s(problem.working_set * itemsize),
        peak_bytes=_peaks(row.op, row.dtype)[row.problem, row.passes, row.name],
    )
    if row.passes in problem.flops:
        benchmark.extra_info["tflop_per_s"] = problem.flops[row.passes] / benchmark.stats.stats.median / 1e12


@functools.cache
def _group(op: str, problem: int, dtype: str, passes: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    calls, absent = _runs(op, problem, dtype)
    return harness.interleaved({name: call[passes] for name, call in calls.items()}), absent


@functools.lru_cache(maxsize=1)  # a compiled function is kept for both passes, tensors not longer than needed
def _runs(op: str, problem: int, dtype: str) -> tuple[dict[str, harness.Calls], dict[str, str]]:
    bench = harness.load(op)
    return harness.runs(bench, bench.problems["cpu"][problem], torch.device("cpu"), getattr(torch, dtype))


@functools.cache
def _peaks(op: str, dtype: str) -> dict[tuple[int, str, str], int]:
    """(problem, pass, name) -> bytes of one call, beyond its inputs (benchmarks/memory.py)."""
    count = len(harness.load(op).problems["cpu"][:sizes])
    command = [sys.executable, "-m", "benchmarks.memory", op, dtype, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}; its messages stand above")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(one["problem"], one["passes"], one["name"]): one["peak_bytes"] for one in found}
