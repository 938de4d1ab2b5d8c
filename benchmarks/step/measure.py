"""Measures the cases that it is given, one after another; run by bench_step.py in a process of its own.

python -m benchmarks.step.measure DEVICE SECONDS '{"cases": [...], "left_out": {...}, ...}'

It prints lines of JSON: {"trying": NAME} before an implementation is made, so that whoever waits knows which one
crashed or hangs; {"alive": true} between calls that are timed; {"case": SPEC, ...} for each case; {"lost": WHY} when an
implementation broke the GPU's context, with which this process can measure nothing more.
"""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

import cpl_kernels
from benchmarks import harness, memory
from benchmarks.gpu import timing
from benchmarks.gpu.measure import peak_bytes, short
from benchmarks.step import cases, peaks, profiles
from benchmarks.step.cases import Case, Step

# Short steps some in a row: the launches of one are made while the GPU still works on the one before, as in training.
IN_A_ROW, SHORT_SECONDS = {"cuda": 3, "cpu": 1}, 0.1
LONG_SECONDS = {"cuda": 8.0, "cpu": 60.0}
RESERVE = {
    "cuda": 20.0,
    "cpu": 60.0,
}  # of the whole time, for timing what is ready when a compiler was stopped
# Relative. Coarse in bfloat16: it is to be known that it is the same function; how exact it is, the tests say.
# What router rounds its logits to bfloat16 may choose another prompt there, so gradients are only told.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
GRADIENT_TOLERANCE = 1e-2
THREADS = 2  # on a CPU, as all benchmarks


class TooSlow(BaseException):
    """No Exception: a compiler would catch it and go on."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block when it takes longer, and again every few seconds should somebody swallow it."""

    def stop(*_: object) -> None:
        raise TooSlow(f"it was not ready after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Measurement:
    """One case: what came out right, and why the others are missing."""

    def __init__(self, case: Case, device: torch.device, end: float, options: dict[str, Any]) -> None:
        self.case, self.device, self.options = case, device, options
        self.end = end - RESERVE[device.type]
        self.calls: dict[str, Callable[[], Any]] = {}
        self.steps: list[Step] = []  # a graph's replay reads weights and images, and does not keep them
        self.looks: dict[str, dict[str, float]] = {}
        self.peaks: dict[str, int | None] = {}
        self.seconds: dict[str, float] = {}  # of one call, roughly
        self.absent: dict[str, str] = {}
        self.failed: dict[str, str] = dict(options["left_out"])

    def prepare(self) -> None:
        """Make every implementation and look whether it computes what the others do."""
        weights = cases.fresh_weights(self.case.model, self.device)
        listed = cases.variants(self.case, self.device.type, self.options["compile_ours"])
        # Plain PyTorch before ours: what the first computes is what the others must.
        for name, variant in sorted(listed.items(), key=lambda item: item[0] != cases.PLAIN):
            if name in self.failed:
                continue
            say({"trying": name})
            begin = time.monotonic()
            try:
                if self.end - begin < 1:
                    raise TooSlow("no time was left")
                with at_most(min(self.options["ready_seconds"], self.end - begin)):
                    self._try(name, Step(self.case, variant, self.device, weights))
            except (harness.Unavailable, cpl_kernels.BackendError) as error:
                self.absent[name] = str(error)
            except TooSlow as error:
                self.failed[name] = str(error)
                stop_compilers(self.case)
            except Exception as error:  # also what a compiler or a driver raises
                traceback.print_exc()
                self.failed[name] = short(error)
                require_alive(self.device, self.failed[name])
            progress(f"  {name}: {self.trouble(name) or 'ready'}, {time.monotonic() - begin:.1f} s")

    def _try(self, name: str, step: Step) -> None:
        self.steps.append(step)
        look = step.look()
        self._compare(name, look)
        call: Callable[[], Any] = step.run
        if step.variant.graph:
            call, how = timing.replayable([call], self.device)
            if how != timing.GRAPH:
                raise harness.Unavailable(how)
        elif self.case.kind != "profile":
            self.peaks[name] = peak_bytes(call, self.device)
        self.seconds[name] = timing.clock(self.device)(call)
        self.calls[name], self.looks[name] = call, look

    def _compare(self, name: str, look: dict[str, float]) -> None:
        """With the first that ran."""
        gold = next(iter(self.looks.values()), look)
        allowed = {"loss": LOSS_TOLERANCE[self.case.dtype]}
        if self.case.dtype == "float32":
            allowed["gradient_norm"] = GRADIENT_TOLERANCE
        for key, value in look.items():
            if key in allowed and not abs(value - gold[key]) <= allowed[key] * abs(gold[key]):
                raise AssertionError(f"its {key} is {value}, that of the others {gold[key]}")

    def trouble(self, name: str) -> str:
        return self.absent.get(name) or self.failed.get(name, "")

    def rows(self) -> list[dict[str, Any]]:
        if not self.calls:
            return []
        if self.device.type == "cpu":
            memory.give_back()  # another process needs it now: a step of plain at 256x256 has a peak of 13 GiB
            self.peaks = peaks.of(self.case, tuple(self.calls), heard)
        count = IN_A_ROW[self.device.type] if min(self.seconds.values()) < SHORT_SECONDS else 1
        together = {name: timing.together([call] * count) for name, call in self.calls.items()}
        times = harness.interleaved(together, self._clock)
        ratios = harness.ratios(times, harness.unit_of(times))
        found = []
        for name, taken in times.items():
            seconds = statistics.median(taken) / count
            found.append(
                {
                    "name": name,
                    "seconds": seconds,
                    "rounds": len(taken),
                    **ratios[name],
                    "images_per_s": self.case.batch / seconds,
                    "peak_bytes": self.peaks.get(name),
                    **self.looks[name],
                }
            )
            progress(f"  {name}: {seconds * 1e3:.2f} ms, {ratios[name]['ratio']:.2f}x")
        return found

    def _clock(self, call: Callable[[], Any]) -> float:
        heard()
        return timing.clock(self.device)(call)

    def profile(self) -> dict[str, Any]:
        found = {}
        for name, call in self.calls.items():
            try:
                found[name] = profiles.of(call, self.device)
            except Exception as error:
                self.failed[name] = short(error)
        return found


def measured(case: Case, device: torch.device, end: float, options: dict[str, Any]) -> dict[str, Any]:
    begin = time.monotonic()
    progress(str(case))
    one = Measurement(case, device, end, options)
    one.prepare()
    say({"trying": None})
    found = {"profile": one.profile()} if case.kind == "profile" else {"rows": one.rows()}
    taken = round(time.monotonic() - begin, 1)
    return {"case": str(case), **found, "absent": one.absent, "failed": one.failed, "measuring_took_s": taken}


def require_alive(device: torch.device, why: str) -> None:
    """After an error of the GPU's context every later call fails too: then end, and let another process go on."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.ones(1, device=device).item()
    except Exception:
        say({"lost": why})
        sys.exit(1)


def stop_compilers(case: Case) -> None:
    """What they still compile, nobody waits for; it would disturb what is timed."""
    if case.kind in cases.COMPILED:
        from torch._inductor import async_compile

        async_compile.shutdown_compile_workers()


def free(case: Case, device: torch.device) -> None:
    if case.kind in cases.COMPILED:  # else its compiler need not even be imported
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def heard() -> None:
    """A sign of life: rounds of long steps take longer than a process may be silent."""
    say({"alive": True})


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(kind: str, seconds: str, options: str) -> None:
    end, device, asked = time.monotonic() + float(seconds), torch.device(kind), json.loads(options)
    harness.LONG_SECONDS = LONG_SECONDS[kind]
    if asked["dry"]:
        harness.SECONDS, harness.LEAST_ROUNDS, harness.MOST_ROUNDS, harness.WARMUP = 0.0, 1, 1, 0
    if kind == "cpu":
        torch.set_num_threads(1 if asked["dry"] else THREADS)  # a test's machine may be busy
    for spec in asked["cases"]:
        case = Case.parse(spec)
        if end - time.monotonic() < RESERVE[kind]:
            say({"case": spec, "error": "not measured: the time was up"})
            continue
        try:
            result = measured(case, device, end, asked)
        except Exception as error:
            traceback.print_exc()
            result = {"case": spec, "error": short(error)}
        say(result)
        if case.kind == "profile":
            return  # the profiler may leave its hooks in every launch; what comes next is timed without
        asked["left_out"] = {}
        free(case, device)


if __name__ == "__main__":
    main(*sys.argv[1:])
