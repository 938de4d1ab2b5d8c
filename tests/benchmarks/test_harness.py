"""What a measurement rests on: taking turns, paired ratios, parity before timing, an idle machine, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import copies, harness, idle, memory, rows


def bench(**implementations: Callable[[], harness.Function]) -> harness.Bench:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        leaves = [torch.randn(3, 4, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
        return leaves, torch.randn(3, 4, device=device, dtype=dtype)

    problem = harness.Problem((3, 4), make, {"forward": 36, "forward+backward": 60}, 24)
    return harness.Bench("add", {"cpu": (problem,)}, implementations, torch.add, 1e-6, 1e-6)


def runs_of(**implementations: Callable[[], harness.Function]) -> Any:
    declared = bench(**implementations)
    return harness.runs(declared, declared.problems["cpu"][0], torch.device("cpu"), torch.float32)


def test_every_op_with_a_kernel_of_ours_is_declared_and_named_after_its_op() -> None:
    assert {"layer_norm2d", "gated_dwconv"} <= set(harness.OPS)
    for op in harness.OPS:
        declared = harness.load(op)
        assert declared.op == op
        assert next(iter(declared.implementations)).startswith(harness.OURS)
        assert set(declared.problems) == {"cpu", "cuda"}


def test_implementations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0)
    order: list[str] = []
    times = harness.interleaved({name: lambda name=name: order.append(name) for name in "ab"})
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert len(rounds) == harness.WARMUP + harness.LEAST_ROUNDS
    assert all(sorted(one) == ["a", "b"] for one in rounds)
    assert ["b", "a"] in rounds
    assert ["a", "b"] in rounds[harness.WARMUP :]
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("ab", harness.LEAST_ROUNDS)


def pretended(seconds: dict[str, float]) -> tuple[harness.Calls, Callable[[Callable[[], object]], float]]:
    """Calls that take no time, and a clock that says they took these seconds."""
    now = ""

    def call(name: str) -> None:
        nonlocal now
        now = name

    def clock(one: Callable[[], object]) -> float:
        one()
        return seconds[now]

    return {name: partial(call, name) for name in seconds}, clock


def test_a_peer_that_loses_by_far_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0)
    seconds = {"ours": 1.0, "peer": 0.5, "far": 6.0, "ours, far": 7.0}
    times = harness.interleaved(*pretended(seconds))
    rounds = {name: len(taken) for name, taken in times.items()}
    assert rounds == dict.fromkeys(seconds, harness.LEAST_ROUNDS) | {"far": harness.FAR_ROUNDS}
    assert harness.ratios(times, "ours")["far"]["ratio"] == 6.0
    seconds["far"] = seconds["peer"] = harness.FAR_SECONDS / 2  # ten times as long as nothing is nothing
    seconds["peer"] /= 1000
    calls, clock = pretended(seconds)
    assert len(harness.interleaved({name: calls[name] for name in ("peer", "far")}, clock)["far"]) > 3


def test_calls_of_seconds_have_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0)
    monkeypatch.setattr(harness, "LONG_SECONDS", -1)  # passed at once
    assert len(harness.interleaved({"a": lambda: None})["a"]) == harness.LONG_ROUNDS < harness.LEAST_ROUNDS


def test_ratios_are_those_within_a_round() -> None:
    """A round in which the machine was ten times slower moves no ratio; a ratio of medians it would."""
    times = {"ours": [1.0, 10.0, 1.0, 30.0], "peer": [2.0, 20.0, 2.0, 60.0]}
    assert harness.ratios(times, "ours")["peer"] == {"ratio": 2.0, "ratio_q1": 2.0, "ratio_q3": 2.0}
    assert harness.unit_of({"peer": 1, "ours (native)": 2, "ours (cuda)": 3}) == "ours (native)"


def test_what_is_wrong_is_not_timed() -> None:
    with pytest.raises(AssertionError, match=r"add 3x4: wrong, result 0"):
        runs_of(ours=lambda: torch.add, wrong=lambda: lambda a, b: a + b + 1e-3)
    with pytest.raises(
        AssertionError, match=r"add 3x4: wrong, result 2"
    ):  # right, but for the second gradient
        runs_of(ours=lambda: torch.add, wrong=lambda: lambda a, b: a + b.detach() + 2 * (b - b.detach()))


def test_a_yardstick_need_not_be_right_and_makes_no_peer_look_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared = bench(ours=lambda: torch.add)
    problem = dataclasses.replace(
        declared.problems["cpu"][0], yardsticks={harness.COPIES: lambda a, b: 0 * (a + b)}
    )
    calls, _ = harness.runs(declared, problem, torch.device("cpu"), torch.float32)
    assert list(calls) == ["ours", harness.COPIES]
    assert not calls[harness.COPIES]["forward"]().any()
    monkeypatch.setattr(harness, "SECONDS", 0)
    times = harness.interleaved(*pretended({harness.COPIES: 0.01, "peer": 1.0, "other": 2.0}))
    assert {len(taken) for taken in times.values()} == {harness.LEAST_ROUNDS}


@pytest.mark.parametrize("lengths", [(2,), (7,), (3, 9), (3, 2)])
def test_copies_write_every_element(lengths: tuple[int, ...]) -> None:
    read = [torch.full((1, length), float(i + 1)) for i, length in enumerate(lengths)]
    written = torch.full((2, 3), torch.nan)
    copies.move(read, written)
    expected = [i + 1 for i, length in enumerate(lengths) for _ in range(length)] + [0] * 6
    assert written.flatten().tolist() == expected[:6]


def test_what_cannot_run_is_left_out_with_its_reason() -> None:
    calls, absent = runs_of(
        ours=lambda: torch.add, elsewhere=harness.on_device("cuda", lambda: torch.add), gone=missing_package
    )
    assert set(calls) == {"ours"}
    assert absent == {"elsewhere": "it runs on cuda tensors", "gone": "no such package"}


def missing_package() -> harness.Function:
    raise ImportError("no such package")


def test_replayed_times_are_what_the_clock_shows() -> None:
    clock = rows.Replay()
    clock.load([0.25, 0.5])
    shown = []
    for _ in range(2):
        start = clock()
        shown.append(clock() - start)
    assert shown == [0.25, 0.5]


def test_a_row_for_every_group_and_implementation() -> None:
    declared = bench(ours=lambda: torch.add, peer=lambda: torch.add)
    listed = rows.of(declared)
    assert [(row.passes, row.name) for row in listed] == [
        (p, n) for p in harness.PASSES for n in ("ours", "peer")
    ]


def looks(*ticks: str) -> Callable[[], list[int]]:
    """What /proc/stat shows, look by look."""
    shown = iter(ticks)
    return lambda: [int(n) for n in next(shown).split()]


def absent() -> list[int]:
    raise FileNotFoundError("/proc/stat")


def test_share_of_the_cores_that_is_taken() -> None:
    #                user nice system idle iowait irq softirq steal
    quiet = looks("100 0 50 1000 50 0 0 0", "101 0 50 1097 52 0 0 0")
    assert idle.busy_share(0, quiet) == pytest.approx(0.01)
    busy = looks("100 0 50 1000 50 0 0 0", "150 0 60 1040 50 0 0 0")
    assert idle.busy_share(0, busy) == pytest.approx(0.6)
    assert idle.busy_share(0, absent) is None


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "busy_share", lambda: 0.6)
    monkeypatch.delenv(idle.VARIABLE, raising=False)
    with pytest.raises(idle.BusyError, match=rf"busy \(60%.*{idle.VARIABLE}=1"):
        idle.check()
    assert idle.state() == "idle"
    monkeypatch.setenv(idle.VARIABLE, "1")
    idle.check()
    assert idle.VARIABLE in idle.state()


def test_peak_memory_counts_what_a_call_holds_and_what_it_passes_through() -> None:
    """To a tenth of 64 MiB: the rest of the process may move a little between the two looks."""
    mib = 2**20
    held = memory.peak(lambda: torch.ones(16 * mib))
    assert held == pytest.approx(64 * mib, abs=7 * mib)
    passed = memory.peak(lambda: torch.ones(16 * mib).sum())
    assert passed == pytest.approx(64 * mib, abs=7 * mib)
    assert memory.peak(lambda: torch.ones(16)) < 7 * mib
