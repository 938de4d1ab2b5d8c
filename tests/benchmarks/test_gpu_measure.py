"""What python -m benchmarks.gpu measures and how: cases, inputs in turn, captured graphs; failures that are named."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu import cases, checks, measure, page, timing
from benchmarks.gpu.stages import DONE, FAILED

FACTS = {"dry": True, "date": "2026-01-01T00:00:00+00:00", "only": []}
CPU = torch.device("cpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_kernel_that_kills_or_stops_its_process_costs_its_own_case_only() -> None:
    """The worker stands for measure.py: it answers, dies of the case "dies" and never answers to "hangs"."""
    worker = (
        "import json, os, sys, time\n"
        "for case in json.loads(sys.argv[1]):\n"
        "    if case == 'dies': os._exit(7)\n"
        "    if case == 'hangs': time.sleep(60)\n"
        "    print('chatter'); print(json.dumps({'case': case, 'rows': []}), flush=True)\n"
    )
    listed = ["first", "dies", "second", "hangs", "third"]
    lines = list(cases.measured(listed, python(worker), seconds=40, case_seconds=3))
    assert [line["case"] for line in lines] == listed
    assert [line.get("error") for line in lines] == [
        None,
        "the process ended with 7",
        None,
        "no result in 3 s",
        None,
    ]


def test_cases_that_the_time_does_not_suffice_for_are_named() -> None:
    worker = python('import time; print(\'{"case": "first"}\', flush=True); time.sleep(60)')
    lines = list(cases.measured(["first", "second", "third"], worker, seconds=2, case_seconds=30))
    assert [line.get("error") for line in lines] == [None, *["not measured: the time was up"] * 2]


def test_every_op_has_its_first_size_measured_before_any_has_its_second() -> None:
    listed = cases.listed(harness.OPS, "cuda")
    sizes = [index for _, index, _ in listed]
    assert sizes == sorted(sizes)
    assert len(listed) == sum(
        len(bench.problems["cuda"]) * len(bench.dtypes["cuda"]) for bench in map(harness.load, harness.OPS)
    )
    assert [op for op, *_ in cases.listed(harness.OPS, "cpu")] == list(harness.OPS)


def tiny(implementations: dict[str, Any]) -> harness.Bench:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
        return [torch.randn(8, device=device, dtype=dtype, requires_grad=True)], torch.ones(8)

    problem = harness.Problem((8,), make, {"forward": 16, "forward+backward": 32}, 16, {"forward": 8})
    return harness.Bench("tiny", {"cpu": (problem,)}, implementations, torch.sin, 1e-6, 1e-6)


def test_arguments_without_a_gradient_reach_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """aggregate_prompts has indices and a size, route_topk its k: their rows come out, and nothing fails."""
    for name in ("SECONDS", "LEAST_ROUNDS", "MOST_ROUNDS", "WARMUP"):
        monkeypatch.setattr(harness, name, 1)
    for op in ("aggregate_prompts", "route_topk"):
        with torch._dynamo.config.patch(disable=True):  # monkeypatch would leave the configuration without it
            found = measure.case(op, 0, "float32", CPU)
        assert found["failed"] == {}
        assert len(found["rows"]) >= 4


def test_a_wrong_or_broken_implementation_is_named_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> harness.Function:
        raise RuntimeError("does not compile")

    def elsewhere() -> harness.Function:
        raise harness.Unavailable("no such peer")

    bench = tiny(
        {
            "ours": lambda: torch.sin,
            "wrong": lambda: torch.cos,
            "broken": lambda: broken,
            "elsewhere": elsewhere,
        }
    )
    monkeypatch.setattr(harness, "load", lambda op: bench)
    monkeypatch.setattr(harness, "SECONDS", 0.0)
    case = measure.case("tiny", 0, "float32", CPU)
    assert {row["name"] for row in case["rows"]} == {"ours"}
    assert case["absent"] == {"elsewhere": "no such peer"}
    assert set(case["failed"]) == {"wrong", "broken"}
    forward, both = case["rows"]
    assert forward["floor_bytes"] == 64
    assert forward["gb_per_s"] == pytest.approx(64 / forward["seconds"] / 1e9)
    assert "tflop_per_s" in forward
    assert "tflop_per_s" not in both
    read = checks.read_cases(json.dumps(case))
    assert read["state"] == FAILED
    stage = {
        "benchmarks": {"state": DONE, **read},
        "ceilings": {"state": DONE, "copy_gb_per_s": 2 * forward["gb_per_s"]},
    }
    written = page.markdown({**FACTS, "stages": stage})
    assert "50%" in written  # of the copy
    assert "Not shown, see result.json: KeyError('matmul_side')" in written  # the page survives what it lacks
    assert "- not here: elsewhere: no such peer" in written
    assert "- not here: wrong: FAILED" in written


def test_the_time_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round makes a call for each of two inputs."""
    bench = tiny({"ours": lambda: torch.sin, "peer": lambda: torch.sin})
    monkeypatch.setattr(harness, "load", lambda op: bench)
    taken = {"ours": [4.0, 4.0, 8.0], "peer": [8.0, 8.0, 16.0]}
    monkeypatch.setattr(harness, "interleaved", lambda calls, clock: taken)
    rows = {row["name"]: row for row in measure.case("tiny", 0, "float32", CPU)["rows"]}
    assert (rows["ours"]["seconds"], rows["peer"]["seconds"]) == (2.0, 4.0)
    assert (rows["ours"]["ratio"], rows["peer"]["ratio"]) == (1.0, 2.0)


def test_inputs_take_turns_and_results_are_held_until_all_are_there() -> None:
    seen: list[int] = []
    run, how = timing.replayable([lambda i=i: seen.append(i) or torch.full((4,), i) for i in range(3)], CPU)
    results = run()
    assert seen == [0, 1, 2]
    assert len({result.data_ptr() for result in results}) == 3
    assert how.startswith(timing.EAGER)


class FakeCuda:
    """As much of torch.cuda as a capture takes; kernels run at once, a replay only counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        self.replayed = 0
        stream = SimpleNamespace(wait_stream=lambda other: None)

        @contextlib.contextmanager
        def capture(graph: Any) -> Iterator[None]:
            yield
            if refuses:
                raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

        def replay() -> None:
            self.replayed += 1

        event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 2.5)
        for name, fake in {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=replay),
            "graph": capture,
            "synchronize": lambda: None,
            "Event": lambda enable_timing: event,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_what_can_be_captured_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, made = FakeCuda(monkeypatch), []
    run, how = timing.replayable([lambda i=i: made.append(i) or i for i in range(2)], torch.device("cuda"))
    assert how == timing.GRAPH
    assert made == [0, 1] * (timing.WARMUP + 1)
    assert (run(), cuda.replayed) == ([0, 1], 1)  # the results that the graph writes to
    assert len(made) == 2 * (timing.WARMUP + 1)  # nothing is launched but the graph
    assert timing.clock(torch.device("cuda"))(run) == 2.5e-3  # events give milliseconds


def test_what_cannot_be_captured_runs_eagerly_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, made = FakeCuda(monkeypatch, refuses=True), []
    run, how = timing.replayable([lambda: made.append(1)], torch.device("cuda"))
    assert how == "eager: RuntimeError: operation not permitted when stream is capturing"
    before = len(made)
    run()
    assert (len(made), cuda.replayed) == (before + 1, 0)


@pytest.mark.parametrize(
    ("size", "copies"),
    [(100, 2), (60, 2), (50, 3), (30, 4), (1, 64), (0, 64)],
    ids=["twice the cache at once", "just over half", "exactly", "a few", "tiny", "empty"],
)
def test_inputs_exceed_twice_the_cache(size: int, copies: int) -> None:
    assert timing.copies_past(50, size, most=64) == copies
