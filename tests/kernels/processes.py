"""The matrix in a process of its own, for what is fixed when a process starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from tests.cuda_host.build import ROOT

MATRIX = ("tests/kernels/test_parity.py", "tests/kernels/test_contract.py")
# What an instruction set can change, and 1, 2 and 3 threads.
VALUES = "native and (test_shapes or threads)"
# What changes the addresses that a kernel touches.
ADDRESSES = f"{VALUES} or native and (test_strides or past_two)"
# Everything of the native backend but what compiles: the same Python whatever the core.
LONG = "native and not compiles"


def run_matrix(
    selection: str, *options: str, files: Sequence[str] = MATRIX, timeout: int = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """pytest on the part of ``files`` that ``-k selection`` names; at least some of it must be there to run."""
    # Python's streams only are captured: what a sanitizer writes before it ends the process must get out.
    pytest = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest, *options, "-k", selection, *files],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    some = {**os.environ, **environment}.get("CPL_TEST_OPS")
    least = 1 if some or files is not MATRIX else 20
    assert int(passed[1]) >= least, f"only {passed[1]} tests: the selection {selection!r} is stale"
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
    return done
