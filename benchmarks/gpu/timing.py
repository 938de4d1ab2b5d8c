"""Clocks, and calls as they are timed: over inputs in turn, on a GPU as one graph where it can be captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
GRAPH, EAGER = "graph replay", "eager"
WARMUP = 3  # calls before a capture, which must find everything compiled and allocated


def event_clock(call: Call) -> float:
    """Seconds between two CUDA events around ``call``."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def wall_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def clock(device: torch.device) -> Callable[[Call], float]:
    return event_clock if device.type == "cuda" else wall_clock


def together(calls: Sequence[Call]) -> Call:
    """All calls, one after another, their results held to the end.

    Held, so that no result is written where the one before it was: it could stay in the cache for ever.
    """
    return lambda: [call() for call in calls]


def replayable(calls: Sequence[Call], device: torch.device) -> tuple[Call, str]:
    """``together(calls)`` as a graph's replay, and how it is run: with the reason where it cannot be a graph."""
    run = together(calls)
    if device.type != "cuda":
        return run, f"{EAGER}: on the CPU"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            held = run()
    except Exception as error:  # whatever a capture forbids; each library raises its own
        torch.cuda.synchronize()
        return run, f"{EAGER}: {_first_line(error)}"

    def replay() -> Any:
        graph.replay()
        return held

    return replay, GRAPH


def copies_past(l2_bytes: int, bytes_of_one: int, most: int) -> int:
    """How many inputs in turn exceed twice the L2 cache, so that none is still there when its turn comes again."""
    return max(2, min(most, 2 * l2_bytes // max(1, bytes_of_one) + 1))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
