"""Checks the checker: bugs planted in small kernels must be caught, and their right twins must pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES
from tests.cuda_host import build, emulator

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}"),
    pytest.mark.xdist_group("planted"),  # compiled once, not by each process
]

SEEDS = (0, 1, 2)  # threads upwards, downwards, shuffled
N = 150  # three blocks of 64, the last one not full


@pytest.fixture(scope="module")
def planted() -> emulator.Core:
    sources = sorted((build.HERE / "planted").glob("*.cu"))
    return emulator.Core(build.executable(sources), seed=0)


def call(planted: emulator.Core, seed: int, entry: str, *arguments: Tensor | float) -> None:
    """Tensors as their addresses, and the stream last."""
    core = planted.with_seed(seed)
    with emulator.tracking(core):
        core.call(entry, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments), 0)


def run(planted: emulator.Core, seed: int, entry: str, x: Tensor, buggy: bool) -> Tensor:
    y = torch.full_like(x, torch.nan)
    call(planted, seed, entry, x, y, len(x), buggy)
    return y


def inputs() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(0))


def padded(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows * columns - len(x))]).view(rows, columns)


def reversed_blocks(x: Tensor) -> Tensor:
    return padded(x, 3, 64).flip(1).flatten()[:N]


def warp_sums(x: Tensor) -> Tensor:
    return padded(x, 6, 32).sum(1, keepdim=True).expand(6, 32).flatten()[:N]


# Stopped by a sanitizer or by the scheduler, under every seed, with this in the report.
STOPPED = {
    "out_of_bounds_write": (lambda x: x, r"WRITE of size 4[\s\S]*: 0 bytes past the end of tensor 1"),
    "out_of_bounds_read": (lambda x: x, r"READ of size 4[\s\S]*: 4 bytes before the start of tensor 0.*\n.* thread \("),
    "static_shared_overrun": (lambda x: x, r"memory\.cu:.*error: store to address|global-buffer-overflow"),
    "dynamic_shared_overrun": (lambda x: x, r"heap-buffer-overflow[\s\S]*WRITE[\s\S]*memory\.cu"),
    "misaligned_vector": (lambda x: x, r"memory\.cu.*misaligned address"),
    "divergent_barrier": (reversed_blocks, r"wait at different barriers\n.*32 threads.*barriers\.cu:\d+\n.*32 thr"),
    "early_exit": (reversed_blocks, r"left the kernel before it[\s\S]*42 threads.*left the kernel\n.*22 threads"),
    "uneven_rounds": (reversed_blocks, r"left the kernel before it[\s\S]*32 threads.*left the kernel"),
    "absent_lanes": (warp_sums, r"__shfl_xor_sync at .*warps\.cu:\d+: lane \d+ reads lane \d+, which does not"),
    "divergent_warp": (warp_sums, r"deadlock[\s\S]*wait in __shfl_xor_sync.*mask 0xffffffff"),
    "wrong_mask": (warp_sums, r"mask 0x0000ffff leaves out lane|lane \d+ reads lane \d+, which does not take part"),
}  # fmt: skip

# Finished with a wrong result, under one seed at least.
WRONG = {
    "uninitialised_shared": lambda x: x,
    "missing_barrier": reversed_blocks,
    "missing_second_barrier": lambda x: padded(x, 3, 64).roll(-2, 1).flatten()[:N],
    "missing_warp_barrier": lambda x: padded(x, 6, 32).flip(1).flatten()[:N],
    "block_order": lambda x: x,
    "wrong_index": lambda x: padded(x, 3, 64).view(3, 8, 8).transpose(1, 2).flatten()[:N],
    "short_tree": warp_sums,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("entry", STOPPED)
def test_stops_the_bug_and_passes_the_twin(planted: emulator.Core, entry: str, seed: int) -> None:
    expected, report = STOPPED[entry]
    torch.testing.assert_close(run(planted, seed, entry, inputs(), buggy=False), expected(inputs()))
    with pytest.raises(emulator.EmulatorError, match=report):
        run(planted, seed, entry, inputs(), buggy=True)


@pytest.mark.parametrize("entry", WRONG)
def test_shows_the_bug_and_passes_the_twin(planted: emulator.Core, entry: str) -> None:
    expected, shown = WRONG[entry](inputs()), []
    for seed in SEEDS:
        torch.testing.assert_close(run(planted, seed, entry, inputs(), buggy=False), expected)
        got = run(planted, seed, entry, inputs(), buggy=True)
        shown.append(not torch.allclose(got, expected))
    assert any(shown)


def test_shows_that_a_sum_has_no_fixed_order(planted: emulator.Core) -> None:
    """The same bits under every thread order are what a deterministic kernel gives, and atomics do not."""
    for buggy in (False, True):
        runs = [run(planted, seed, "order_of_atomics", inputs(), buggy) for seed in (0, 1, 2, 3)]
        assert all(torch.equal(r, runs[0]) for r in runs[1:]) is not buggy


def test_same_seed_same_order(planted: emulator.Core) -> None:
    once, again = (run(planted, 7, "missing_barrier", inputs(), buggy=True) for _ in range(2))
    assert torch.equal(once.isnan(), again.isnan())
    assert once.isnan().any(), "this seed shows the race"


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles_and_votes(planted: emulator.Core, seed: int) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(1))
    y = x.new_full((10, 64), torch.nan)
    call(planted, seed, "warp_functions", x, y, 64)
    for warp in range(2):
        v, got = x.view(2, 32)[warp], y.view(10, 2, 32)[:, warp]
        lane = torch.arange(32)
        own = {
            0: v[torch.full((32,), 5)],
            1: v[lane // 8 * 8 + (lane + 3) % 8],
            2: v[torch.where(lane >= 2, lane - 2, lane)],
            3: v[torch.where(lane % 4 >= 1, lane - 1, lane)],
            4: v[torch.where(lane + 3 < 32, lane + 3, lane)],
            5: v[torch.where(lane % 16 < 15, lane + 1, lane)],
            6: v[lane ^ 9],
            7: (v > 0).sum().float().expand(32),
            8: torch.full((32,), 2.0),
            9: 31.0 + 32 * warp + (x > 0).sum().float().expand(32),
        }
        low = lane < 16
        own[0] = torch.where(low, own[0] + v[lane ^ 1], own[0])
        own[1] = torch.where(low, own[1] + 16, own[1])
        for row, expected in own.items():
            torch.testing.assert_close(got[row], expected, msg=f"row {row}, warp {warp}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_of_the_tensor_cores(planted: emulator.Core, dtype: torch.dtype, seed: int) -> None:
    """common/mma.h; of fp32 operands the last 13 bits are not looked at."""
    depth = 8 if dtype == torch.float32 else 16
    rng = torch.Generator().manual_seed(2)
    a, b = (torch.randn(rows, depth, generator=rng).to(dtype) for rows in (16, 8))
    a[3, 5] = torch.nan
    d = torch.full((16, 8), torch.inf)
    call(planted, seed, "mma", a, b, d, DTYPE_CODES[dtype])
    seen = [(x.view(torch.int32) & -(2**13)).view(dtype) if dtype == torch.float32 else x for x in (a, b)]
    torch.testing.assert_close(d, (seen[0].double() @ seen[1].double().mT).float(), equal_nan=True)
    assert d.isnan().sum() == 8, "a NaN is in its row alone"


def test_tf32_parts(planted: emulator.Core) -> None:
    x = torch.cat([inputs() * 10.0**e for e in (-20, 0, 20)])
    x[:3] = torch.tensor([torch.nan, torch.inf, -0.0])
    high, low = torch.empty_like(x), torch.empty_like(x)
    call(planted, 0, "split_tf32", x, high, low, len(x))
    finite = x.isfinite()
    for part in (high, low):
        assert torch.equal(
            part[finite].view(torch.int32) & 0x1FFF, torch.zeros_like(x[finite], dtype=torch.int32)
        )
    assert ((high.double() + low.double() - x.double()).abs() <= 2.0**-22 * x.abs().double())[finite].all()
    assert high[0].isnan()
    assert high[1] == torch.inf
    assert low[:2].isnan().all()


def test_coordinates_cover_the_grid(planted: emulator.Core) -> None:
    y = torch.full((24, 60), torch.nan)
    call(planted, 5, "coordinates", y)
    assert torch.equal(y, torch.arange(24.0)[:, None] * 1000 + torch.arange(60.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_floats_round_as_torch_does(planted: emulator.Core, dtype: torch.dtype) -> None:
    """Random bits (NaN, infinities and subnormals among them), values halfway between two, and near them."""
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=rng, dtype=torch.int64).to(torch.int32)
    narrow = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halfway = (narrow[:-1].double() + narrow[1:].double()) / 2
    near = torch.cat([halfway, halfway * (1 + 2.0**-50), halfway * (1 - 2.0**-50)])  # only fp64 can tell
    wide = torch.cat([bits.view(torch.float32).double(), narrow.double(), near])
    x = wide.float()
    y, y_wide = torch.empty_like(x, dtype=dtype), torch.empty_like(x, dtype=dtype)
    back = torch.empty_like(x)
    call(planted, 0, "convert", x, y, wide, y_wide, back, len(x), DTYPE_CODES[dtype])
    assert torch.equal(y.nan_to_num(7.0), x.to(dtype).nan_to_num(7.0))
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(back.nan_to_num(7.0), y.float().nan_to_num(7.0))
    # torch rounds fp64 to fp32 first; so the nearest of the neighbours, found in fp64, is the judge.
    finite = wide.isfinite() & y_wide.isfinite()
    down, up = (torch.nextafter(y_wide, torch.full_like(y_wide, s * torch.inf)).double() for s in (-1, 1))
    error = (y_wide.double() - wide).abs()
    assert bool((error <= torch.minimum((down - wide).abs(), (up - wide).abs()))[finite].all())


def test_atomics_count_every_thread(planted: emulator.Core) -> None:
    y = torch.zeros(4, dtype=torch.int32)
    call(planted, 3, "atomics", y)
    assert y.tolist() == [3 * 64, 63, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 32, 0), "an empty grid"),
        ((1, 0, 0), "a block of 0 threads"),
        ((1, 1025, 0), "a block of 1025 threads"),
        ((2**31, 32, 0), "a grid beyond"),
        ((1, 32, 48 * 1024 + 1), "49153 bytes of dynamic shared memory, 49152 allowed"),
    ],
)
def test_refuses_what_the_device_refuses(
    planted: emulator.Core, sizes: tuple[int, int, int], message: str
) -> None:
    call(planted, 0, "launch_only", 2, 1024, 48 * 1024)
    with pytest.raises(emulator.EmulatorError, match=message):
        call(planted, 0, "launch_only", *sizes)


def test_a_malformed_call_is_named(planted: emulator.Core) -> None:
    x = inputs()
    with pytest.raises(emulator.EmulatorError, match="no entry nothing"):
        call(planted, 0, "nothing", x)
    with pytest.raises(emulator.EmulatorError, match="expected an argument of kind i, got f"):
        call(planted, 0, "missing_barrier", x, x, 1.5, True)
    with pytest.raises(emulator.EmulatorError, match="is not that of a tensor of this call"):
        planted.call("missing_barrier", 12345, 12345, 1, True, 0)


def test_tensors_may_interleave_in_memory(planted: emulator.Core) -> None:
    """Halves of one tensor, one read and one written: the copies that go over must not clobber each other."""
    both = torch.stack([inputs(), torch.full((N,), torch.nan)])
    x, y = both
    call(planted, 0, "missing_barrier", x, y, N, False)
    assert torch.equal(y, reversed_blocks(inputs()))
    assert torch.equal(x, inputs())
