"""Builds the C++ CPU kernels a second time, under AddressSanitizer and UBSan, once per content.

The module lands in build/sanitized; plugin.py puts it in the place of cpl_kernels._core. The flags that
matter to what the code means are those of csrc/CMakeLists.txt.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_host import build
from tests.cuda_host.build import CSRC, ROOT, compiler, contents, digest, made

Job = tuple[Path, tuple[str, ...]]

CACHE = ROOT / "build" / "sanitized"
PLANTED = Path(__file__).parent / "planted.cpp"
# Without bounds-strict: CPython declares the last member of a tuple as an array of one.
SANITIZE = "-fsanitize=address,undefined,float-cast-overflow"
COMPILE = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", SANITIZE, "-fno-sanitize-recover=all", f"-I{CSRC}"),
)
# Matrix units in plain C++: the sanitizers do not see what the instructions touch.
VARIANTS = ("-DCPL_X86_VARIANTS", "-DCPL_WITH_AMX", "-DCPL_EMULATED_UNITS")
LINK = ("-shared", "-fopenmp", "-fsanitize=address,undefined")
ISAS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}


@functools.cache
def why_not() -> str | None:
    """Why the core cannot be built so on this machine, or None."""
    if build.why_not() is not None:
        return build.why_not()
    if os.uname().machine != "x86_64":
        return "the sanitised build knows the instruction sets of x86-64 only"
    return None if runtime().exists() else "g++ has no shared AddressSanitizer runtime"


@functools.cache
def runtime() -> Path:
    """What must be loaded before Python: the sanitizer takes malloc's place, torch's included."""
    return _library("libasan.so")


def preloaded() -> str:
    """For LD_PRELOAD. With the C++ runtime behind the sanitizer, which looks for its throw when it is loaded: without
    it the first error that torch throws, and somebody catches, ends the process."""
    return f"{runtime()} {_library('libstdc++.so.6')}"


def _library(name: str) -> Path:
    command = ["g++", f"-print-file-name={name}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def core() -> Path:
    """The module, with every op and instruction set of the real one, without CUDA."""
    return _linked("_core", core_jobs())


def core_jobs() -> list[Job]:
    """Every source of the module and its flags."""
    import pybind11

    bindings = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}", *VARIANTS)
    jobs: list[Job] = [
        (CSRC / "module.cpp", bindings),
        (CSRC / "common" / "caches.cpp", ()),
        (CSRC / "common" / "isa.cpp", VARIANTS),
        (CSRC / "products" / "amx.cpp", ("-DCPL_ISA=amx", *VARIANTS)),
    ]
    for source in sorted(CSRC.glob("*/cpu.cpp")):
        jobs += [(source, (f"-DCPL_ISA={isa}", *flags)) for isa, flags in ISAS.items()]
    return jobs


def planted() -> Path:
    return _linked("planted", [(PLANTED, ("-fvisibility=default",))])


def _linked(name: str, jobs: list[Job]) -> Path:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compiled(*job), jobs))
    key = digest(*(str(o).encode() for o in objects), *(flag.encode() for flag in LINK))
    return made(CACHE / f"{name}-{key}.so", ["g++", *LINK, *map(str, objects)])


def compiled(source: Path, flags: tuple[str, ...]) -> Path:
    key = digest(compiler(), *(flag.encode() for flag in (*COMPILE, *flags)), *contents(source))
    return made(CACHE / f"{key}.o", ["g++", *COMPILE, *flags, "-c", str(source)])
