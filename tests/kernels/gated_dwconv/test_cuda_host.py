"""gated_dwconv's CUDA C++ without one of its barriers (barriers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_host import build
from tests.kernels import barriers
from tests.kernels.gated_dwconv.spec import SPEC

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(barriers.count("gated_dwconv")))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path) -> None:
    cases = [case for case in SPEC.cases if case.name == "beyond"]
    barriers.assert_needed(SPEC, barrier, cases, tmp_path)
