"""Every copy of the C++ kernels, one per instruction set: the matrix, and the same bits at any number of threads.

Which copy runs is fixed when a process first asks (CPL_ISA), so each has its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cpl_kernels import core
from tests.kernels.processes import LONG, VALUES, run_matrix

pytestmark = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
ISAS = ["baseline", "avx2", "avx512", "amx"]


def _or_skip(isa: str) -> None:
    code = "import torch; from cpl_kernels.core import core; print(core().isa())"
    env = {**os.environ, "CPL_ISA": isa}
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    if "this CPU or this build does not have it" in asked.stderr:
        pytest.skip(reason=f"this CPU has no {isa}")
    assert asked.stdout.strip() == isa, asked.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_values(isa: str) -> None:
    own = core.core().isa()
    if own == isa:
        return  # the matrix of this very process runs on it
    _or_skip(isa)
    # With matrix units the kernels are AVX-512's too, but for those that multiply.
    only = {"CPL_TEST_OPS": "info_nce"} if (own, isa) == ("amx", "avx512") else {}
    run_matrix(VALUES, "-m", "not slow", CPL_ISA=isa, **only)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_everything(isa: str) -> None:
    _or_skip(isa)
    for threads in ("1", "2"):
        run_matrix(LONG, timeout=1800, CPL_ISA=isa, OMP_NUM_THREADS=threads)
