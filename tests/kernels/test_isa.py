"""Every copy of the C++ kernels, one per instruction set: the matrix, and the same bits at any number of threads.

Which copy runs is fixed when a process first asks (CPL_ISA), so each has its own. The run is short: ops that have not
changed since it last passed on them (vouched.py) are left to ``make test-full``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from cpl_kernels import core
from tests.kernels import vouched
from tests.kernels.processes import LONG, VALUES, run_matrix

pytestmark = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
ISAS = ["baseline", "avx2", "avx512", "amx"]


def why_not(isa: str) -> str | None:
    """Why this CPU cannot run it, or None."""
    code = "import torch; from cpl_kernels.core import core; print(core().isa())"
    env = {**os.environ, "CPL_ISA": isa}
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    if "this CPU or this build does not have it" in asked.stderr:
        return f"this CPU has no {isa}"
    assert asked.stdout.strip() == isa, asked.stderr
    return None


def run_values(isa: str, ops: Sequence[str]) -> None:
    run_matrix(VALUES, "-m", "not slow", timeout=1800, CPL_ISA=isa, CPL_TEST_OPS=",".join(ops))


@pytest.mark.parametrize("isa", ISAS)
def test_values(isa: str) -> None:
    own, ops = core.core().isa(), vouched.unvouched(isa)
    if own == isa:
        return  # the matrix of this very process runs on it
    if (own, isa) == ("amx", "avx512"):
        # With matrix units the kernels are AVX-512's too, but for those that multiply.
        ops = tuple(op for op in ops if op == "info_nce")
    if not ops:
        return  # vouched.json: it passed on what these ops are
    if why := why_not(isa):
        pytest.skip(reason=why)
    run_values(isa, ops)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_everything(isa: str) -> None:
    if why := why_not(isa):
        pytest.skip(reason=why)
    for threads in ("1", "2"):
        run_matrix(LONG, timeout=1800, CPL_ISA=isa, OMP_NUM_THREADS=threads)
