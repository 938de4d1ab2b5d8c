"""channel_attention's CUDA C++ without one of its barriers (barriers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_host import build
from tests.kernels import barriers
from tests.kernels.channel_attention.spec import SPEC, case

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")

# Both products take several steps, over pixels and over channels: only then is a tile read again.
STEPS = case("steps", "several steps of 32 pixels, and of 32 channels", 1, (1, 3 * 35, 1, 70))
# The tensor cores' matrix lies in shared memory 96 channels at a time.
PARTS = case("parts", "one channel group beyond what of the matrix is kept", 1, (1, 3 * 104, 1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(barriers.count("channel_attention")))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.float64)  # on the tensor cores and without them
    barriers.assert_needed(SPEC, barrier, [STEPS, PARTS], tmp_path, dtypes)
