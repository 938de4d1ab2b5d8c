"""Loads the compiled core, or keeps the one-line reason why it is not there.

torch is imported first on purpose: its CPU wheel brings an OpenMP runtime under the plain soname,
so the core, loaded second, shares torch's thread pool instead of starting one of its own.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

from cpl_kernels.checks import switched_on

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # common/dtype.h

REBUILD = "pip install --force-reinstall --no-deps cpl-kernels (from a checkout: pip install -e .)"


def _load() -> tuple[ModuleType | None, str]:
    if switched_on("CPL_SKIP_EXT"):
        return None, f"CPL_SKIP_EXT={os.environ['CPL_SKIP_EXT']} is set"
    try:
        module = importlib.import_module("cpl_kernels._core")
        module.__getattr__ = _older  # type: ignore[method-assign]  # of the module: asked for what it lacks
        return module, ""
    except ModuleNotFoundError:
        return None, build_info().get(
            "native_reason", "it was not built: no compiler was found at install time"
        )
    except ImportError as error:
        return None, f"it does not load ({error}); rebuild it: {REBUILD}"


def _older(name: str) -> NoReturn:
    raise AttributeError(
        f"cpl_kernels._core has no {name}: it is older than the Python beside it; rebuild it: {REBUILD}"
    )


def stream_of(x: Tensor) -> int:
    """The stream that work on x goes to: the current one of its device."""
    return torch.cuda.current_stream(x.device).cuda_stream


def build_info() -> dict[str, str]:
    """What setup.py decided when it built this copy: commit, native, native_reason, cuda, cuda_reason."""
    try:
        return dict(importlib.import_module("cpl_kernels._build").INFO)
    except ModuleNotFoundError:
        return {"native_reason": "this copy was never installed; run: pip install -e ."}


_CORE, MISSING_BECAUSE = _load()


def available() -> bool:
    return _CORE is not None


def core() -> ModuleType:
    """The compiled core; callers ask ``missing`` first, so that the reason reaches the user."""
    assert _CORE is not None, MISSING_BECAUSE
    return _CORE


def missing(cuda: bool = False) -> str | None:
    """Why the core (or its CUDA part) cannot be used, or None when it can."""
    if _CORE is None:
        return f"the native core is missing: {MISSING_BECAUSE}"
    if cuda and not _CORE.HAS_CUDA:
        return (
            f"the native core was built without CUDA: {build_info().get('cuda_reason', 'nvcc was not found')}"
        )
    return None


def openmp_runtimes() -> list[str]:
    """The OpenMP runtimes in this process. Two of them spin against each other; one is right."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return []
    files = {line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and "omp" in line}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(f for f in files if os.path.basename(f).startswith(names))
