"""A pytest plugin (``-p tests.kernels.sanitized.plugin``): the module that CPL_TEST_CORE names is cpl_kernels._core."""

from __future__ import annotations

import importlib.util
import os
import sys

import torch  # noqa: F401  its OpenMP runtime comes first, as in cpl_kernels/core.py


def _load() -> None:
    assert "cpl_kernels._core" not in sys.modules, "loaded too late"
    spec = importlib.util.spec_from_file_location("cpl_kernels._core", os.environ["CPL_TEST_CORE"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["cpl_kernels._core"] = module


_load()
