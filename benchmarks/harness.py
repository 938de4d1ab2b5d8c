"""How an op declares what is measured, and how a measurement is taken; the same for every op and device.

``benchmarks/bench_<op>.py`` holds one ``BENCH = Bench(...)``. Parity is asserted before anything is timed. All
implementations of a group take turns, round after round, so that whatever else the machine does hits all of them
alike; what is compared is the median of the ratios within a round. Results are allocated anew in every call, as
they are in use: what the operating system takes for fresh pages is part of the time.
"""

from __future__ import annotations

import importlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import cpl_kernels
from benchmarks.ops import OPS as OPS

Function = Callable[..., Tensor]
Calls = dict[str, Callable[[], Any]]

PASSES = ("forward", "forward+backward")
SECONDS, LEAST_ROUNDS, MOST_ROUNDS, WARMUP = 2.5, 9, 40, 2
# What loses by far need not be known to a per cent: beyond both, a call takes part in the first rounds only.
FAR_RATIO, FAR_SECONDS, FAR_ROUNDS = 10.0, 0.02, 3
LONG_SECONDS, LONG_ROUNDS = 20.0, 5  # where the least rounds would take longer than that
OURS = "ours"  # implementations whose names begin so are ours
COPIES, PRODUCTS = "copies of the same bytes", "the products of matrices alone"
YARDSTICKS = (COPIES, PRODUCTS)  # names of rows that are no implementations
# Backend -> type of device; native comes first. As backends.RUNS_ON, which compare.py cannot count on: it runs this
# file over an older commit's cpl_kernels.
RUNS_ON = {"native": "cpu", "triton": "cuda", "cuda": "cuda"}


class Unavailable(RuntimeError):
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """One size of an op.

    Attributes:
        shape: names it in tables.
        make: ``make(device, dtype)`` -> the leaves, which require a gradient, and the incoming gradient.
        floor_elements: pass -> elements that must move, each input read and each result written once.
        working_set: elements of a copy that meets the same levels of the memory, read plus written.
        flops: pass -> floating-point operations, for ops that are bound by them.
        fixed: device -> arguments behind the leaves that have no gradient: indices, sizes.
        yardsticks: by a name of YARDSTICKS, a function of the leaves that does only what every implementation does too,
            the plain way. It takes turns with them, so it finds caches and new pages as they do: how near they come
            to it says what the machine leaves to be won. Tiles that stay in caches may beat it.
        note: stands behind the shape, where that is not all.
    """

    shape: tuple[int, ...]
    make: Callable[[torch.device, torch.dtype], tuple[list[Tensor], Tensor]]
    floor_elements: Mapping[str, int]
    working_set: int
    flops: Mapping[str, int] = field(default_factory=dict)
    fixed: Callable[[torch.device], tuple[Any, ...]] = lambda device: ()
    yardsticks: Mapping[str, Function] = field(default_factory=dict)
    note: str = ""

    @property
    def id(self) -> str:
        return " ".join(filter(None, ("x".join(map(str, self.shape)), self.note)))

    def bind(self, function: Function, device: torch.device) -> Function:
        """``function`` of the leaves alone."""
        fixed = self.fixed(device)
        return (lambda *leaves: function(*leaves, *fixed)) if fixed else function


@dataclass(frozen=True)
class Bench:
    """What is measured of an op.

    Attributes:
        problems: device type -> sizes.
        implementations: name -> factory of a function of the leaves; raises Unavailable where it cannot run. The
            first is ours.
        definition: what every implementation must agree with.
        tolerance: absolute, of the result and of the first leaf's gradient.
        sum_tolerance: of the gradients that sum over all pixels.
        dtypes: device type -> names of dtypes.
    """

    op: str
    problems: Mapping[str, tuple[Problem, ...]]
    implementations: Mapping[str, Callable[[], Function]]
    definition: Function
    tolerance: float
    sum_tolerance: float
    dtypes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
    )

    def rows(self, problem: Problem) -> dict[str, Callable[[], Function]]:
        """The implementations, and behind them the problem's yardsticks."""
        return {**self.implementations, **{name: lambda f=f: f for name, f in problem.yardsticks.items()}}

    def group(self, problem: Problem, dtype: str, passes: str) -> str:
        return f"{self.op} {problem.id} {dtype} {passes}"


def load(op: str) -> Bench:
    """The declaration of ``op``."""
    bench = importlib.import_module(f"benchmarks.bench_{op}").BENCH
    assert isinstance(bench, Bench)
    return bench


def on_device(device: str, factory: Callable[[], Function]) -> Callable[[], Function]:
    """A factory of what runs on one type of device only."""

    def checked() -> Function:
        function = factory()

        def run(*leaves: Tensor) -> Tensor:
            if leaves[0].device.type != device:
                raise Unavailable(f"it runs on {device} tensors")
            return function(*leaves)

        return run

    return checked


def ours(on_backend: Callable[[str], Function]) -> dict[str, Callable[[], Function]]:
    """Our implementations by name, one for each backend beside the reference; a call says if the op lacks it.

    Args:
        on_backend: name of a backend -> function of the leaves that runs on it.
    """

    def factory(backend: str, device: str) -> Callable[[], Function]:
        return on_device(device, lambda: on_backend(backend))

    return {f"{OURS} ({backend})": factory(backend, device) for backend, device in RUNS_ON.items()}


def compiled(function: Function) -> Callable[[], Function]:
    """A factory of ``function`` under torch.compile, for sizes that stay."""

    def factory() -> Function:
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    return factory


def passes_of(function: Function, leaves: Sequence[Tensor], dy: Tensor) -> Calls:
    """What is timed: the forward without a graph, and the forward with the gradient of every leaf."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*leaves)

    return {
        "forward": forward,
        "forward+backward": lambda: torch.autograd.grad(function(*leaves), leaves, dy),
    }


def runs(
    bench: Bench, problem: Problem, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Calls], dict[str, str]]:
    """Name -> pass -> call, of every implementation that runs here and is right; and why the others do not run.

    Raises:
        AssertionError: an implementation differs from the definition.
    """
    torch.manual_seed(0)
    leaves, dy = problem.make(device, dtype)
    gold = _results(passes_of(problem.bind(bench.definition, device), leaves, dy))
    calls: dict[str, Calls] = {}
    absent: dict[str, str] = {}
    for name, factory in bench.rows(problem).items():
        try:
            calls[name] = passes_of(problem.bind(factory(), device), leaves, dy)
            if name in problem.yardsticks:  # not right, nor meant to be
                continue
            got = _results(calls[name])
        except (Unavailable, ImportError, cpl_kernels.BackendError) as error:
            absent[name] = str(error)
            calls.pop(name, None)
            continue
        _assert_same(f"{bench.op} {problem.id}: {name}", got, gold, bench, dtype)
    return calls, absent


def interleaved(
    calls: Calls, clock: Callable[[Callable[[], Any]], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of every call, round after round, in an order that is drawn for each; rounds go on for a fixed time.

    In a fixed order each would always find the caches that the same other one left: one implementation that stood in it
    twice came out at 0.65 to 0.92 of itself.

    A peer that is slower by far than the fastest (FAR_RATIO) has FAR_ROUNDS of them. Calls of seconds have fewer
    too: as long as they are, what else the machine does is averaged within each.
    """
    clock = clock or wall_clock
    warm: dict[str, float] = {}
    for _ in range(WARMUP):  # what takes a second is warm after the first
        for name, call in calls.items():
            if warm.get(name, 0.0) < 1.0:
                warm[name] = min(clock(call), warm.get(name, math.inf))
    fastest = min((taken for name, taken in warm.items() if name not in YARDSTICKS), default=0.0)
    limit = max(FAR_SECONDS, FAR_RATIO * fastest)
    far = {name for name, taken in warm.items() if taken > limit and not name.startswith(OURS)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, draw = list(calls), random.Random(0)
    start = time.monotonic()
    for done in range(MOST_ROUNDS):
        passed = time.monotonic() - start
        if (done >= LEAST_ROUNDS and passed > SECONDS) or (done >= LONG_ROUNDS and passed > LONG_SECONDS):
            break
        draw.shuffle(names)
        for name in names:
            if done < FAR_ROUNDS or name not in far:
                times[name].append(clock(calls[name]))
    return times


def wall_clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratios(times: Mapping[str, Sequence[float]], unit: str) -> dict[str, dict[str, float]]:
    """Of every implementation's times to those of ``unit`` in the same round, where both took part: median and
    quartiles."""
    result = {}
    for name, taken in times.items():
        paired = [a / b for a, b in zip(taken, times[unit], strict=False)]
        low, middle, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
        result[name] = {"ratio": middle, "ratio_q1": low, "ratio_q3": high}
    return result


def unit_of(times: Mapping[str, Any]) -> str:
    """What the ratios are to: the first of ours that ran, else the first of all."""
    ours = [name for name in times if name.startswith(OURS)]
    return ours[0] if ours else next(iter(times))


def _results(calls: Calls) -> list[Tensor]:
    return [calls["forward"](), *calls["forward+backward"]()]


def _assert_same(
    what: str, got: Sequence[Tensor], gold: Sequence[Tensor], bench: Bench, dtype: torch.dtype
) -> None:
    """The result and the first gradient to ``tolerance``, sums over all pixels to ``sum_tolerance``.

    Wide enough for any order of summation, and for 16-bit steps in between: that it is the same function is all
    that a benchmark must know (how exact it is, tests/kernels say).
    """
    coarse = max(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps / 64)
    for i, (a, b) in enumerate(zip(got, gold, strict=True)):
        allowed = (bench.tolerance if i < 2 else bench.sum_tolerance) * coarse
        try:
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-3 * coarse, atol=allowed)
        except AssertionError as error:
            raise AssertionError(f"{what}, result {i}: {error}") from None
