"""What setup.py decides on machines that lack things. Real builds are made by .ci/run (make package)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("setuptools", reason="setup.py needs setuptools")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy with just what setup.py looks at."""
    (tmp_path / "cpl_kernels").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "cpl_kernels" / name, tmp_path / "cpl_kernels" / name)
    return tmp_path


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("CPL_")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout, env={**env, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def info(checkout: Path) -> dict[str, str]:
    scope: dict[str, dict[str, str]] = {}
    exec((checkout / "cpl_kernels" / "_build.py").read_text(), scope)
    return scope["INFO"]


def test_no_compiler_still_installs_and_says_how_to_get_one(checkout: Path) -> None:
    done = build(checkout, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "native core: no: no C++ compiler was found" in done.stdout
    assert "apt-get install g++" in info(checkout)["native_reason"]
    assert not list((checkout / "cpl_kernels").glob("_core*"))


def test_compiler_without_python_headers_is_left_out_with_its_own_words(checkout: Path) -> None:
    cxx = checkout / "c++"
    cxx.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    cxx.chmod(0o755)
    done = build(checkout, CXX=str(cxx))
    assert done.returncode == 0, done.stderr
    assert "Python.h: No such file" in info(checkout)["native_reason"]
    assert "python3-dev" in info(checkout)["native_reason"]


def test_source_distribution_keeps_the_commit(checkout: Path) -> None:
    (checkout / "COMMIT").write_text("0123abc\n")  # as one archive is made from another
    assert build(checkout, CPL_SKIP_EXT="1").returncode == 0
    assert info(checkout)["commit"] == "0123abc"


def test_skip_ext_is_pure_python(checkout: Path) -> None:
    done = build(checkout, CPL_SKIP_EXT="1")
    assert done.returncode == 0, done.stderr
    assert "CPL_SKIP_EXT=1" in info(checkout)["native_reason"]


def test_force_cuda_fails_loudly_without_nvcc(checkout: Path) -> None:
    done = build(checkout, CPL_FORCE_CUDA="1", CUDACXX="no-such-nvcc")
    assert done.returncode != 0
    assert "CPL_FORCE_CUDA=1, but the CUDA kernels cannot be built: nvcc was not found" in done.stderr


def test_nvcc_that_cannot_compile_is_left_out_with_its_own_words(checkout: Path) -> None:
    nvcc = checkout / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: unsupported GNU version' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    done = build(checkout, CPL_FORCE_CUDA="1", CUDACXX=str(nvcc))
    assert done.returncode != 0
    assert "unsupported GNU version" in done.stderr


def test_torch_is_not_imported_by_setup() -> None:
    assert "import torch" not in (ROOT / "setup.py").read_text()


def test_the_core_includes_no_torch_header() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".cpp", ".cu", ".h"):
            for header in ("torch/", "ATen/", "c10/"):
                assert f"<{header}" not in path.read_text(), f"{path} includes {header}"
