"""Compiles .cu files with g++ against the emulator's headers, once per content."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_host"
RUNTIME = tuple(HERE / name for name in ("main.cpp", "block.cpp", "fiber.cpp"))

INCLUDE = (HERE / "include", HERE, CSRC)  # ours first: pyview.h stands in for csrc's
SANITIZE = "-fsanitize=address,undefined,float-cast-overflow,bounds-strict"
COMPILE = (
    *("-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-threadsafe-statics"),
    *(SANITIZE, "-fno-sanitize-recover=all"),
    *("-DCPL_CUDA_HOST", "-DCPL_WITH_CUDA", "-DCPL_ISA=gpu"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),  # nvcc's #pragma unroll
    *(f"-I{folder}" for folder in INCLUDE),
)
LINK = ("-fsanitize=address,undefined", "-Wl,--wrap=__asan_register_globals")


@functools.cache
def why_not() -> str | None:
    """Why the emulator cannot be built on this machine, or None."""
    compiler = shutil.which("g++")
    if compiler is None:
        return "needs g++"
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.cpp"
        probe.write_text("int main() { return sizeof(_Float16) != 2; }\n")
        command = [compiler, "-std=c++17", SANITIZE, *LINK[:1], str(probe), "-o", str(probe.with_suffix(""))]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode == 0:
            built = subprocess.run([str(probe.with_suffix(""))], capture_output=True, text=True)
    return None if built.returncode == 0 else "needs g++ >= 12 with its AddressSanitizer and UBSan runtimes"


def executable(sources: Iterable[Path]) -> Path:
    """The emulator with ``sources`` linked in; compiles what changed since it was last asked for."""
    everything = [*RUNTIME, *sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, everything))
    target = CACHE / digest(b"link", *(str(o).encode() for o in objects), *(flag.encode() for flag in LINK))
    return made(target, ["g++", *LINK, *map(str, objects)])


def op(name: str) -> Path:
    """The emulator of one op: tests/cuda_host/<name>.cpp and csrc/<name>/cuda.cu."""
    return executable(op_sources(name))


def op_sources(name: str) -> list[Path]:
    return [HERE / f"{name}.cpp", CSRC / name / "cuda.cu"]


def compiled(source: Path) -> Path:
    name = digest(compiler(), *(flag.encode() for flag in COMPILE), *contents(source, INCLUDE))
    return made(CACHE / f"{name}.o", ["g++", *COMPILE, "-x", "c++", "-c", str(source)])


def contents(source: Path, folders: Sequence[Path] = (CSRC,)) -> list[bytes]:
    """Names and bytes of a source and of every header of ours that it includes, itself or by way of another."""
    found = [source]
    for path in found:  # it grows
        for name in re.findall(r'^ *#include ["<](.+)[">]', path.read_text(), re.MULTILINE):
            header = next((f / name for f in (path.parent, *folders) if (f / name).is_file()), None)
            if header is not None and header not in found:
                found.append(header)
    return [part for path in found for part in (str(path).encode(), path.read_bytes())]


def made(target: Path, command: Sequence[str]) -> Path:
    """``target``, made by ``command -o`` unless it is there; whole or not at all, whoever else makes it."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    try:
        made = subprocess.run([*command, "-o", temporary], capture_output=True, text=True)
        if made.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{made.stderr}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return target


@functools.cache
def compiler() -> bytes:
    return subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout


def digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:24]
