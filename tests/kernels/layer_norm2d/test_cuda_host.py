"""layer_norm2d's CUDA C++ on the CPU (tests/cuda_host): the matrix of the other backends, under sanitizers.

The seed orders the threads of a block: 0 upwards, 1 downwards, others shuffled. Shapes with no
elements launch nothing, here as on a GPU.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import cpl_kernels
from tests.cuda_host import build, emulator
from tests.kernels import harness
from tests.kernels.layer_norm2d import test_layer_norm2d as parity

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")

OP = "layer_norm2d"
LAYOUTS = ("contiguous", "channels_last")  # a kernel each
SHAPES = {
    **parity.SHAPES,
    (2, 9, 9, 29): "planar: tiles of 64 that straddle no image, a persistent block with several tiles",
    (1, 33, 5, 13): "one channel more than a warp has lanes",
}


def check(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layouts: tuple[str, str],
    center: bool,
    seed: int,
    executable: Path | None = None,
) -> None:
    x, weight, bias, dy = parity.make(shape, dtype)
    x, dy = harness.strided(layouts[0], x), harness.strided(layouts[1], dy)
    with emulator.on_cpu(OP, seed, executable):
        parity.check(x, weight, bias, dy, center=center, backend="cuda")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...], layout: str) -> None:
    for seed, center in ((0, True), (2, False)):
        check(shape, torch.float32, (layout, layout), center, seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, layout: str) -> None:
    for seed, center in ((1, True), (3, False)):
        check((2, 5, 5, 14), dtype, (layout, layout), center, seed)


@pytest.mark.parametrize("layout", harness.STRIDES)
def test_strides_of_input_and_incoming_gradient(layout: str) -> None:
    for seed, layouts in enumerate([(layout, layout), (layout, "contiguous"), ("channels_last", layout)]):
        check((2, 6, 5, 4), torch.float32, layouts, True, seed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_grid(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    for seed, center in itertools.product((0, 1, 2, 3, 4), (True, False)):
        check(shape, dtype, (layout, layout), center, seed)


@pytest.mark.slow
@pytest.mark.parametrize("layouts", list(itertools.product(harness.STRIDES, repeat=2)), ids="-".join)
def test_all_strides(layouts: tuple[str, str]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check((2, 6, 5, 4), dtype, layouts, True, seed=5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_in_any_order_of_threads_and_blocks(layout: str) -> None:
    x, weight, bias, dy = parity.make((3, 7, 13, 17), torch.float32)
    x, dy = harness.strided(layout, x), harness.strided(layout, dy)
    runs = []
    for seed in (0, 1, 2, 3):
        with emulator.on_cpu(OP, seed):
            runs.append(
                harness.gradients(
                    lambda *a: cpl_kernels.layer_norm2d(*a, backend="cuda"), (x, weight, bias), dy
                )
            )
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "test",
    [
        parity.test_channels_last_gradients,
        parity.test_no_bias_and_mixed_dtypes,
        parity.test_large_mean_loses_no_digits,
        parity.test_nan_and_infinity_stay_in_their_pixel,
        parity.test_offsets_past_two_to_the_31,
    ],
    ids=lambda test: test.__name__,
)
def test_as_every_backend(test, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Single cases of the common matrix, as they stand there."""
    marks = [m for m in getattr(test, "pytestmark", []) if m.name == "parametrize" and m.args[0] != "backend"]
    for values in itertools.product(*(m.args[1] for m in marks)):
        with emulator.on_cpu(OP, seed):
            test(**dict(zip((m.args[0] for m in marks), values, strict=True)), backend="cuda")


BARRIERS = (build.CSRC / OP / "cuda.cu").read_text().count("__syncthreads();")


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path) -> None:
    """Checks the checker on the kernel itself: with any one barrier taken out, some seed shows it."""
    parts = (build.CSRC / OP / "cuda.cu").read_text().split("__syncthreads();")
    source = tmp_path / "cuda.cu"
    source.write_text(
        "__syncthreads();".join(parts[: barrier + 1]) + ";" + "__syncthreads();".join(parts[barrier + 1 :])
    )
    broken = build.executable([build.HERE / f"{OP}.cpp", source])

    def check_under_every_order() -> None:
        for seed in range(4):
            check((2, 9, 9, 29), torch.float32, ("contiguous", "contiguous"), True, seed, broken)

    with pytest.raises(AssertionError):
        check_under_every_order()
