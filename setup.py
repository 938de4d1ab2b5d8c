"""Builds the native core with CMake and Ninja; everything else stands in pyproject.toml.

torch is neither imported nor needed here. What is built is decided by what the machine has:

    no C++ compiler      pure Python (and Triton); the install still succeeds
    nvcc that works      CUDA kernels too
    CPL_SKIP_EXT=1       pure Python, even if there is a compiler
    CPL_SKIP_CUDA=1      C++ only
    CPL_FORCE_CUDA=1     fail loudly if the CUDA kernels cannot be built
    CPL_CUDA_ARCHS       e.g. "90a" or "80;90"; the default is every one of 80;86;89;90a;100;120 that
                         nvcc knows, plus PTX of compute_80 for what comes after

torch.cuda.is_available() has no say: machines that build wheels have no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
AGAIN = (
    "run pip install --force-reinstall --no-deps --no-cache-dir cpl-kernels (in a checkout: pip install -e .)"
)
COMMIT_FILE = ROOT / "COMMIT"  # in source distributions only
WANTED_ARCHS = ("80", "86", "89", "90a", "100", "120")


def version() -> str:
    text = (ROOT / "cpl_kernels" / "_version.py").read_text()
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no")


def commit() -> str:
    """Of the checkout, or what the source distribution kept of the checkout that it was made from."""
    try:
        if (ROOT / ".git").exists():
            command = ["git", "rev-parse", "HEAD"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
            return done.stdout.strip()
        return COMMIT_FILE.read_text().strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def compiler() -> str | None:
    named = os.environ.get("CXX", "").split()
    names = named[:1] or ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def compiler_works(cxx: str) -> str | None:
    """None when it compiles against Python's headers, else what is missing: then the core is left out."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <cstdint>\nint main() { return 0; }\n")
        include = sysconfig.get_paths()["include"]
        command = [cxx, "-std=c++17", f"-I{include}", "-c", str(source), "-o", str(Path(folder) / "probe.o")]
        return first_error(command)


def first_error(command: list[str]) -> str | None:
    """None when the compiler succeeds, else the first line in which it says why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no message")


def find_nvcc() -> str | None:
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def nvcc_works(nvcc: str) -> str | None:
    """None when nvcc compiles a kernel with this machine's C++ compiler, else what it said."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text("#include <stdexcept>\n__global__ void probe() {}\n")
        return first_error([nvcc, "-std=c++17", "-c", str(source), "-o", str(Path(folder) / "probe.o")])


def cuda_archs(nvcc: str) -> str:
    """As CMake wants them: real code for each, and PTX of the oldest for GPUs yet to come."""
    asked = os.environ.get("CPL_CUDA_ARCHS")
    if asked:
        listed = re.split(r"[;, ]+", asked.strip())
        return ";".join(arch if "-" in arch else f"{arch}-real" for arch in listed)  # 80-virtual: PTX alone
    known_to = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"compute_(\d+)", known_to))
    archs = [f"{arch}-real" for arch in WANTED_ARCHS if arch.rstrip("a") in known]
    return ";".join([*archs, "80-virtual"] if "80" in known else archs)


def plan() -> dict[str, str]:
    """What will be built and why; kept in cpl_kernels/_build.py for show_config()."""
    info = {"commit": commit(), "native": "", "native_reason": "", "cuda": "", "cuda_reason": ""}
    force, cxx = flag("CPL_FORCE_CUDA"), compiler()
    if flag("CPL_SKIP_EXT"):
        info["native_reason"] = "it was built with CPL_SKIP_EXT=1; install again without it"
    elif cxx is None:
        info["native_reason"] = (
            f"no C++ compiler was found at install time; install one (Debian: apt-get install g++) and {AGAIN}"
        )
    elif trouble := compiler_works(cxx):
        info["native_reason"] = (
            f"{cxx} could not compile a Python extension at install time ({trouble}); mend that "
            f"(Debian: apt-get install g++ python3-dev) and {AGAIN}"
        )
    else:
        info["native"] = cxx
    nvcc = find_nvcc()
    if not info["native"]:
        info["cuda_reason"] = info["native_reason"]
    elif flag("CPL_SKIP_CUDA"):
        info["cuda_reason"] = "it was built with CPL_SKIP_CUDA=1"
    elif nvcc is None:
        info["cuda_reason"] = "nvcc was not found at install time; install the CUDA toolkit or set CUDA_HOME"
    else:
        trouble = nvcc_works(nvcc)
        info["cuda_reason"] = f"{nvcc} cannot compile here: {trouble}" if trouble else ""
        info["cuda"] = "" if trouble else nvcc
    if force and not info["cuda"]:
        sys.exit(f"error: CPL_FORCE_CUDA=1, but the CUDA kernels cannot be built: {info['cuda_reason']}")
    return info


class BuildCore(build_ext):
    """Configures and builds csrc/ with CMake, or leaves the core out and says why."""

    def run(self) -> None:
        info = plan()
        print(f"cpl-kernels: native core: {info['native'] or 'no: ' + info['native_reason']}")
        print(f"cpl-kernels: CUDA kernels: {info['cuda'] or 'no: ' + info['cuda_reason']}", flush=True)
        target = Path(self.get_ext_fullpath("cpl_kernels._core")).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if info["native"]:
            self._build(target, info)
        else:
            target.unlink(missing_ok=True)  # one left from an earlier editable build would be stale
        lines = [f"    {key!r}: {value!r},\n" for key, value in info.items()]
        (target.parent / "_build.py").write_text(
            '"""Written by setup.py when this copy was built."""\n\nINFO = {\n' + "".join(lines) + "}\n"
        )

    def _build(self, target: Path, info: dict[str, str]) -> None:
        import pybind11

        build = Path(self.build_temp).resolve() / "core"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "--fresh",  # an older cache names the ninja of a build environment that pip has deleted since
            "-S",
            str(ROOT / "csrc"),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCPL_WITH_CUDA={'ON' if info['cuda'] else 'OFF'}",
        ]
        if info["cuda"]:
            configure += [
                f"-DCMAKE_CUDA_COMPILER={info['cuda']}",
                f"-DCMAKE_CUDA_ARCHITECTURES={cuda_archs(info['cuda'])}",
            ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"error: building the native core failed ({error}); its messages stand above. "
                "Set CPL_SKIP_CUDA=1 to leave the CUDA kernels out, or CPL_SKIP_EXT=1 for pure Python"
            )
        if not target.exists():
            sys.exit(f"error: the build succeeded but left no {target.name}")

    def get_outputs(self) -> list[str]:
        """The files a wheel takes from the build folder."""
        core = Path(self.get_ext_fullpath("cpl_kernels._core"))
        return [str(p) for p in (core, core.parent / "_build.py") if p.exists()]


class SourceDistribution(sdist):
    """Keeps the commit: what is built from the archive has no checkout to ask."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / COMMIT_FILE.name).write_text(commit() + "\n")


setup(
    version=version(),
    ext_modules=[Extension("cpl_kernels._core", sources=[])],
    cmdclass={"build_ext": BuildCore, "sdist": SourceDistribution},
)
