"""Checks the emulator on feature_distances' CUDA C++: the matrix, run on it, must notice a missing barrier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_host import build
from tests.kernels import targets
from tests.kernels.feature_distances.spec import SPEC

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")

SOURCE = build.CSRC / "feature_distances" / "cuda.cu"
BARRIERS = SOURCE.read_text().count("__syncthreads();")


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any one barrier taken out, some order of the threads shows it."""
    parts = SOURCE.read_text().split("__syncthreads();")
    source = tmp_path / "cuda.cu"
    source.write_text(
        "__syncthreads();".join(parts[: barrier + 1]) + ";" + "__syncthreads();".join(parts[barrier + 1 :])
    )
    broken = build.executable([build.HERE / "feature_distances.cpp", source])
    monkeypatch.setattr(build, "op", lambda name: broken)
    cases = [case for case in SPEC.cases if case.name in ("normalised", "five negatives")]

    def check_under_every_order() -> None:
        for seed in range(4):
            target = targets.Target("emulated", "cuda").in_order(seed)
            for case in cases:
                targets.check(SPEC, case, target, case.inputs(torch.float32), torch.float32)

    with pytest.raises(AssertionError):
        check_under_every_order()
