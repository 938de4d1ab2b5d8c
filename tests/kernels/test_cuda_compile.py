"""nvcc compiles every CUDA kernel for every architecture, and ptxas keeps its values in registers.

A spill is a kernel that silently runs at a fraction of its speed; it needs no GPU to be seen. What a kernel may take
besides, ``tests/kernels/<op>/limits.py`` says next to what Triton's may:

    CUDA_LIMITS    kernel -> registers a thread at the most, on any architecture, with its reason beside it. 64 leave
                   room for 1024 threads on a multiprocessor of 65536 registers, 128 for 512.
"""

from __future__ import annotations

import functools
import importlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cuda_host import build

pytest.importorskip("triton", reason="limits.py names Triton's limits too (Linux only)")

CACHE = build.ROOT / "build" / "cuda_compile"
OPS = sorted(path.parent.name for path in build.CSRC.glob("*/cuda.cu"))

ARCHS = ("80", "86", "89", "90a", "100", "120")
ORDINARY = "90a"  # compiled in every run; the others with the slow tests

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@functools.cache
def nvcc_knows() -> str:
    return subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout


@functools.cache
def ptxas_report(op: str, arch: str) -> str:
    """What ``ptxas -v`` says of csrc/<op>/cuda.cu; kept by content, as compiling takes seconds."""
    # As csrc/CMakeLists.txt compiles it; any warning is an error.
    command = ["nvcc", "-std=c++17", "-O3", "-DCPL_WITH_CUDA", "-DCPL_ISA=gpu", "-Xptxas", "-v", "-cubin"]
    command += ["--Werror", "all-warnings", "-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    source = build.CSRC / op / "cuda.cu"
    key = build.digest(version.encode(), *(word.encode() for word in command), *build.contents(source))
    kept = CACHE / f"{op}-{arch}-{key}.txt"
    if kept.exists():
        return kept.read_text()
    CACHE.mkdir(parents=True, exist_ok=True)
    cubin = kept.with_suffix(".cubin")
    command += [f"-I{build.CSRC}", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
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


def limits(op: str) -> Mapping[str, int]:
    return importlib.import_module(f"tests.kernels.{op}.limits").CUDA_LIMITS


def entries(report: str) -> list[tuple[str, str]]:
    """Signature of each kernel in the report, and what is said of it."""
    blocks = re.split(r"Compiling entry function '", report)[1:]
    assert blocks, f"no kernel in the report of ptxas:\n{report}"
    return list(zip(demangled([block.split("'", 1)[0] for block in blocks]), blocks, strict=True))


def excesses(report: str, limits: Mapping[str, int]) -> list[str]:
    """Every kernel of the report that spills, takes more registers than its limit, or has none."""
    wrong = []
    for signature, block in entries(report):
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        assert spills, block
        assert registers, block
        limit = limits.get(kernel_name(signature))
        if int(spills[1]) + int(spills[2]):
            wrong.append(f"{signature}: {spills[0]}")
        if limit is None or int(registers[1]) > limit:
            wrong.append(f"{signature}: {registers[1]} registers, limit {limit}")
    return wrong


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=[] if a == ORDINARY else pytest.mark.slow, id=f"sm_{a}") for a in ARCHS]
)
@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills(op: str, arch: str) -> None:
    if f"compute_{arch.rstrip('a')}" not in nvcc_knows():
        pytest.skip(reason=f"this nvcc does not know compute_{arch}")
    assert not excesses(ptxas_report(op, arch), limits(op))


@pytest.mark.parametrize("op", OPS)
def test_limits_name_kernels_that_exist(op: str) -> None:
    assert set(limits(op)) == {kernel_name(signature) for signature, _ in entries(ptxas_report(op, ORDINARY))}


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
        tmp_path / "spill.cubin",
        source,
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (spill,) = excesses(report, {"spill": 32})
    assert re.search(r"spill\(float\*\): [1-9]\d* bytes spill stores", spill)
    assert any("registers, limit 8" in line for line in excesses(report, {"spill": 8}))
    assert any("registers, limit None" in line for line in excesses(report, {}))
