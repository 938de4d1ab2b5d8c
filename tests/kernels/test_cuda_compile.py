"""nvcc compiles every CUDA kernel for every architecture, and ptxas keeps its values in registers.

A spill is a kernel that silently runs at a fraction of its speed; it needs no GPU to be seen.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_compile"
OPS = sorted(path.parent.name for path in CSRC.glob("*/cuda.cu"))

ARCHS = ("80", "86", "89", "90a", "100", "120")
ORDINARY = "90a"  # compiled in every run; the others with the slow tests

# Registers a thread, on any architecture. 64 leaves room for 1024 threads on a multiprocessor of
# 65536 registers, 128 for 512; what is above must say why, and what is far below may be held there.
DEFAULT_LIMIT = 128
LIMITS: dict[str, dict[str, int]] = {
    "layer_norm2d": {
        "forward_planar": 48,
        "forward_last": 48,
        "backward_planar": 64,  # four persistent blocks of 256 threads on a multiprocessor
        "backward_last": 64,  # the same
        "reduce_rows": 40,
    },
}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@functools.cache
def nvcc_knows() -> str:
    return subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout


@functools.cache
def ptxas_report(op: str, arch: str) -> str:
    """What ``ptxas -v`` says of csrc/<op>/cuda.cu; kept by content, as compiling takes seconds."""
    # As csrc/CMakeLists.txt compiles it, and any warning is an error.
    command = ["nvcc", "-std=c++17", "-O3", "-DCPL_WITH_CUDA", "-DCPL_ISA=gpu", "-Xptxas", "-v", "-cubin"]
    command += ["--Werror", "all-warnings", "-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    content = hashlib.sha256(f"{version}{command}".encode())
    for path in [
        CSRC / op / "cuda.cu",
        *sorted((CSRC / "common").glob("*.h")),
        *sorted((CSRC / op).glob("*.h")),
    ]:
        content.update(path.name.encode() + path.read_bytes())
    kept = CACHE / f"{op}-{arch}-{content.hexdigest()[:24]}.txt"
    if kept.exists():
        return kept.read_text()
    CACHE.mkdir(parents=True, exist_ok=True)
    cubin = kept.with_suffix(".cubin")
    done = subprocess.run(
        [*command, f"-I{CSRC}", "-o", str(cubin), str(CSRC / op / "cuda.cu")], capture_output=True, text=True
    )
    assert done.returncode == 0, f"nvcc for sm_{arch}:\n{done.stdout}{done.stderr}"
    cubin.unlink()
    kept.write_text(done.stderr)
    return done.stderr


def demangled(names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    assert tool is not None, "needs c++filt (binutils) or cu++filt to name the kernels"
    return subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()


def kernel_name(signature: str) -> str:
    """``void cpl::cuda::(anonymous namespace)::forward<float>(cpl::Args)`` -> ``forward``."""
    plain = re.sub(r"\(anonymous namespace\)::|<unnamed>::", "", signature)
    found = re.search(r"(\w+)\s*[<(]", plain)
    assert found, signature
    return found[1]


def excesses(report: str, limits: dict[str, int]) -> list[str]:
    """Every kernel of the report that spills or takes more registers than its limit."""
    blocks = re.split(r"Compiling entry function '", report)[1:]
    signatures = demangled([block.split("'", 1)[0] for block in blocks])
    assert blocks, f"no kernel in the report of ptxas:\n{report}"
    wrong = []
    for signature, block in zip(signatures, blocks, strict=True):
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        assert spills, block
        assert registers, block
        limit = limits.get(kernel_name(signature), DEFAULT_LIMIT)
        if int(spills[1]) + int(spills[2]):
            wrong.append(f"{signature}: {spills[0]}")
        if int(registers[1]) > limit:
            wrong.append(f"{signature}: {registers[1]} registers, limit {limit}")
    return wrong


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=[] if a == ORDINARY else pytest.mark.slow, id=f"sm_{a}") for a in ARCHS]
)
@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills(op: str, arch: str) -> None:
    if f"compute_{arch.rstrip('a')}" not in nvcc_knows():
        pytest.skip(reason=f"this nvcc does not know compute_{arch}")
    assert not excesses(ptxas_report(op, arch), LIMITS.get(op, {}))


def test_limits_name_kernels_that_exist() -> None:
    for op, limits in LIMITS.items():
        source = (CSRC / op / "cuda.cu").read_text()
        assert not [name for name in limits if not re.search(rf"\b{name}\(", source)], op


def test_a_spill_and_an_excess_are_seen(tmp_path: Path) -> None:
    """Checks the checker: a kernel that keeps 128 values at once, in 32 registers."""
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spill(float* x) {\n"
        "  float v[128];\n"
        "  for (int i = 0; i < 128; ++i) v[i] = x[i * 32 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "  for (int i = 0; i < 128; ++i) x[(127 - i) * 32 + threadIdx.x] = v[i] * v[127 - i];\n"
        "}\n"
    )
    command = [
        "nvcc",
        "-Xptxas",
        "-v",
        "-cubin",
        "-arch",
        f"sm_{ORDINARY}",
        "-o",
        str(tmp_path / "spill.cubin"),
    ]
    report = subprocess.run([*command, str(source)], capture_output=True, text=True, check=True).stderr
    (spill,) = excesses(report, {})
    assert re.search(r"spill\(float\*\): [1-9]\d* bytes spill stores", spill)
    assert any("registers, limit 8" in line for line in excesses(report, {"spill": 8}))
