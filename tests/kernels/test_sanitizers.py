"""The C++ CPU kernels under AddressSanitizer and UBSan, fed by the matrix.

The sanitizer's runtime is loaded before Python, so that torch's memory is its own: every tensor ends at
its last byte, and a kernel that touches the next one stops the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from cpl_kernels import core
from tests.kernels import vouched
from tests.kernels.processes import ADDRESSES, LONG, run_matrix
from tests.kernels.sanitized import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")


def environment() -> dict[str, str]:
    return {
        "LD_PRELOAD": build.preloaded(),
        # No leak check: CPython keeps what it has. No check that Python and torch match in new and delete.
        # New memory up to 4 MiB is NaN in every dtype: a sum that starts from it shows.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:max_malloc_fill_size=4194304:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }


def sanitised() -> tuple[str, ...]:
    return ("-p", "tests.kernels.sanitized.plugin")


CALL = """
import ctypes, sys
if sys.argv[3] == "torch":
    import torch
    values = torch.ones(1003)
    address = values.data_ptr()
else:  # quicker
    values = (ctypes.c_float * 1003)(*[1] * 1003)
    address = ctypes.addressof(values)
getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(address), ctypes.c_int64(1003))
print("survived", float(sum(values)))
"""


def call_planted(function: str, memory: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CALL, str(build.planted()), function, memory]
    env = {**os.environ, **environment()}
    return subprocess.run(command, capture_output=True, text=True, env=env, errors="replace", timeout=300)


@pytest.mark.parametrize(
    ("function", "memory", "report"),
    [
        ("write_one_past", "torch", "heap-buffer-overflow"),
        ("read_one_past", "ctypes", "heap-buffer-overflow"),
        ("read_one_before", "ctypes", "heap-buffer-overflow"),
        ("offset_overflows", "ctypes", "signed integer overflow"),
    ],
)
def test_a_planted_bug_is_caught(function: str, memory: str, report: str) -> None:
    done = call_planted(function, memory)
    assert done.returncode != 0
    assert report in done.stderr
    assert function in done.stderr, "the report names the place"
    assert "survived" not in done.stdout


def test_what_is_right_passes() -> None:
    done = call_planted("add_in_bounds", "torch")
    assert done.stdout.strip() == "survived 2006.0", done.stderr


def test_an_error_of_torch_can_be_caught() -> None:
    code = "import torch\ntry: torch.ones(2) @ torch.ones(3)\nexcept RuntimeError: print('caught')"
    env = {**os.environ, **environment()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.strip() == "caught", done.stderr[-2000:]


def run_values(ops: Sequence[str]) -> None:
    """The matrix of ``ops``, and what no case of it has: results past the caches, products on matrix units."""
    extra = environment() | {"CPL_TEST_CORE": str(build.core())}
    run_matrix(ADDRESSES, *sanitised(), "-m", "not slow", timeout=1800, CPL_TEST_OPS=",".join(ops), **extra)
    if "aggregate_prompts" in ops:  # it streams results of over 4 MiB
        files = ("tests/kernels/aggregate_prompts/test_aggregate_prompts.py",)
        for isa in build.ISAS:
            run_matrix("streamed and float32", *sanitised(), files=files, CPL_ISA=isa, **extra)
    # Matrix units are plain C++ here; beside them are the kernels of AVX-512.
    if "info_nce" in ops and core.available() and core.core().isa() in ("avx512", "amx"):
        files = ("tests/kernels/test_products.py", "tests/kernels/info_nce/test_on_units.py")
        run_matrix("not slow", *sanitised(), files=files, CPL_ISA="amx", **extra)


def test_values() -> None:
    """It runs the ops that have changed since it last passed (vouched.py); make test-full runs all."""
    ops = vouched.unvouched(vouched.SANITIZERS)
    if ops:
        run_values(ops)


@pytest.mark.slow
@pytest.mark.parametrize("isa", build.ISAS)
def test_everything(isa: str) -> None:
    extra = environment() | {"CPL_ISA": isa, "CPL_TEST_CORE": str(build.core())}
    run_matrix(LONG, *sanitised(), timeout=1800, **extra)
