"""Every shipped Triton kernel compiles for every target, keeps its values in registers and fits (triton_aot.py)."""

from __future__ import annotations

import re

import pytest
import torch

from tests.conftest import INTERPRETED

triton = pytest.importorskip("triton", reason="needs triton (Linux only)")

from triton import language as tl  # noqa: E402

from tests.kernels import triton_aot  # noqa: E402
from tests.kernels.triton_aot import TARGETS, Launch, Limit, Report  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")

# An op's first call, which launches all its kernels, in every run; the others with the slow tests.
CALLS = [
    pytest.param(op, call, marks=[pytest.mark.slow] if i else [], id=f"{op}-{call}")
    for op in triton_aot.OPS
    for i, call in enumerate(triton_aot.calls(op))
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("op", "call"), CALLS)
def test_fits(op: str, call: str, target: str) -> None:
    wrong = []
    for launch in triton_aot.launches_of(op, call, target):
        report = triton_aot.compile_for(launch, TARGETS[target])
        limit = triton_aot.limits(op).TRITON_LIMITS[launch.name]
        wrong += [f"{launch.name}: {w}" for w in triton_aot.excesses(report, TARGETS[target], limit)]
    assert not wrong


@pytest.mark.parametrize("op", triton_aot.OPS)
def test_first_call_launches_every_kernel_and_each_has_a_limit(op: str) -> None:
    assert triton_aot.calls(op), (
        f"tests/kernels/{op}/limits.py is missing; triton_aot.py says what stands there"
    )
    kernels = {
        name
        for name, value in vars(triton_aot.kernels(op)).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    first = next(iter(triton_aot.limits(op).TRITON_CALLS))
    assert {launch.name for launch in triton_aot.launches_of(op, first)} == kernels
    assert set(triton_aot.limits(op).TRITON_LIMITS) == kernels


def test_an_op_without_limits_can_be_collected() -> None:
    assert triton_aot.calls("sparse_prompt") == ()  # it has no kernels of its own
    assert triton_aot.calls("layer_norm2d")


def test_what_is_compiled_is_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's own constants arrive, and one that is too ambitious is seen."""
    monkeypatch.setattr(triton_aot.kernels("layer_norm2d"), "_WARPS", 1)
    first = next(iter(triton_aot.limits("layer_norm2d").TRITON_CALLS))
    forward, _ = triton_aot.launches_of("layer_norm2d", first)
    assert forward.kwargs["num_warps"] == 1
    report = triton_aot.compile_for(forward, TARGETS["sm_90"])
    assert report.num_warps == 1
    assert any("spills" in w for w in triton_aot.excesses(report, TARGETS["sm_90"], Limit(warps=1)))


@triton.jit
def _spill_kernel(x, y, SIZE: tl.constexpr):
    """Every value is needed again after the sum of all: SIZE / lanes registers."""
    i = tl.arange(0, SIZE)
    value = tl.load(x + i)
    tl.store(y + i, value / tl.sum(value, 0))


@triton.jit
def _shared_kernel(x, y, SIZE: tl.constexpr):
    """Rows are read and columns are written: the tile of 4 SIZE^2 bytes turns in shared memory."""
    i = tl.arange(0, SIZE)
    tile = tl.load(x + i[:, None] * SIZE + i[None, :])
    tl.store(y + i[:, None] + i[None, :] * SIZE, tile)


def _launch(kernel: triton.JITFunction, size: int, num_warps: int) -> Launch:
    x = torch.empty(size, device="meta")
    (launch,) = triton_aot.launches(lambda: kernel[(1,)](x, x, SIZE=size, num_warps=num_warps))
    return launch


@pytest.mark.parametrize("target", TARGETS)
def test_a_spill_is_seen(target: str) -> None:
    lanes = TARGETS[target].gpu.warp_size
    report = triton_aot.compile_for(_launch(_spill_kernel, 512 * lanes, 1), TARGETS[target])
    assert any(re.match(r"spills \([1-9]", w) for w in triton_aot.excesses(report, TARGETS[target], Limit(1)))
    light = triton_aot.compile_for(_launch(_spill_kernel, 16 * lanes, 1), TARGETS[target])
    assert not triton_aot.excesses(light, TARGETS[target], Limit(1))


# For AMD, Triton 3.6 turns a tile that is too large in parts (3.7 asks for 256 KiB).
@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("sm_")])
def test_too_much_shared_memory_is_seen(target: str) -> None:
    report = triton_aot.compile_for(_launch(_shared_kernel, 256, 16), TARGETS[target])
    (wrong,) = [w for w in triton_aot.excesses(report, TARGETS[target], Limit(1)) if "shared" in w]
    assert wrong == (f"{report.shared} bytes of shared memory, the target has {TARGETS[target].shared_limit}")


@pytest.mark.parametrize("target", TARGETS)
def test_shared_memory_ends_where_the_target_says(target: str) -> None:
    most = TARGETS[target].shared_limit
    full, over = (Report(registers=32, spilled=0, shared=bytes_, num_warps=4) for bytes_ in (most, most + 1))
    assert not triton_aot.excesses(full, TARGETS[target], Limit(4))
    assert triton_aot.excesses(over, TARGETS[target], Limit(0))


@pytest.mark.parametrize(
    ("target", "report", "warps"),
    [
        # registers: 65536 / (32 * 32) = 64 warps, 65536 / (128 * 32) = 16
        ("sm_90", Report(registers=32, spilled=0, shared=0, num_warps=8), 64),
        ("sm_90", Report(registers=128, spilled=0, shared=0, num_warps=8), 16),
        ("sm_90", Report(registers=129, spilled=0, shared=0, num_warps=8), 8),  # 12 warps: one program
        ("sm_120", Report(registers=32, spilled=0, shared=0, num_warps=16), 48),
        ("sm_120", Report(registers=16, spilled=0, shared=0, num_warps=1), 24),  # programs
        ("sm_80", Report(registers=32, spilled=0, shared=81 * 1024, num_warps=4), 8),  # (81 + 1) * 2 = 164
        ("sm_80", Report(registers=32, spilled=0, shared=81 * 1024 + 1, num_warps=4), 4),
        ("gfx942", Report(registers=64, spilled=0, shared=0, num_warps=4), 32),  # 512 / 64 on each SIMD
        ("gfx942", Report(registers=65, spilled=0, shared=0, num_warps=4), 28),
        ("gfx942", Report(registers=16, spilled=0, shared=64 * 1024, num_warps=4), 4),
    ],
)
def test_resident_warps(target: str, report: Report, warps: int) -> None:
    assert TARGETS[target].resident_warps(report) == warps
    assert not triton_aot.excesses(report, TARGETS[target], Limit(warps))
    assert triton_aot.excesses(report, TARGETS[target], Limit(warps + 1))
