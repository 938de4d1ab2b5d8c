"""layer_norm2d's CUDA C++ without one of its barriers (barriers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_host import build
from tests.kernels import barriers, targets
from tests.kernels.layer_norm2d.spec import SPEC, case

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(barriers.count("layer_norm2d")))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path) -> None:
    cases = [case for case in SPEC.cases if case.name in ("model", "straddling")]
    both = torch.float32, torch.float64  # each has its kernels
    barriers.assert_needed(SPEC, barrier, cases, tmp_path, both)


# Backward, blocks walk a second tile where there are more than these run at once: 264 and 396.
CASES = {
    "walk": case("walk", "410 tiles of 8 pixels in runs of four, two images in between", (10, 320, 8, 41)),
    "walk, odd": case("walk, odd", "320 tiles of 8 pixels, one by one", (8, 320, 11, 29)),
    "widest": case("widest", "more channels than tiles (or Triton) can hold", (1, 4000, 1, 4)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("walk", torch.float32),
        pytest.param("walk, odd", torch.float32, marks=pytest.mark.slow),
        ("widest", torch.float32),
        ("widest", torch.bfloat16),
    ],
)
def test_only_here(name: str, dtype: torch.dtype) -> None:
    """Shapes that ask too much of the other backends' tests."""
    target = targets.Target("emulated", "cuda").in_order(2)
    targets.check(SPEC, CASES[name], target, CASES[name].inputs(dtype), dtype)
