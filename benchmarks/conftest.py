"""What every benchmark shares: the threads, the machine's own copy bandwidth, and the facts kept with a result."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

import cpl_kernels

THREADS = 2  # the machine that the aims are written for


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Versions and commit beside the figures: a number without them cannot be made again."""
    report = cpl_kernels.config()
    kept = {key: report[key] for key in ("versions", "commit", "native_core", "threads")}
    output_json["cpl"] = {**kept, "interop": "reference eager, torch.compile and peers in the same run"}


@pytest.fixture(scope="session")
def copy_bandwidth() -> Any:
    """copy_bandwidth(bytes) -> GB/s of a torch copy that moves that many, read plus written."""
    cache: dict[int, float] = {}

    def measure(moved: int) -> float:
        if moved not in cache:
            source = torch.ones(max(1, moved // 8))
            target = torch.empty_like(source)
            times = []
            for _ in range(15):
                start = time.perf_counter()
                target.copy_(source)
                times.append(time.perf_counter() - start)
            cache[moved] = moved / statistics.median(times) / 1e9
        return cache[moved]

    return measure
