"""What every test shares: which tests can run in this process, and why the others cannot."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from cpl_kernels import strips

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_report_header() -> str | None:
    """A matrix cut down to some ops (tests/kernels/spec.py) must not pass for the whole."""
    chosen = os.environ.get("CPL_TEST_OPS")
    return f"CPL_TEST_OPS: the kernels' matrix is that of {chosen} alone" if chosen else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    interpreter = pytest.mark.skip(reason="needs TRITON_INTERPRET=1 before the first import; see make test")
    gpu = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(interpreter)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(gpu)


def pytest_runtest_teardown() -> None:
    """Code that all models share (hooks around a module) torch compiles eight times in a process, then no more: what a
    test may compile must not hang on those that ran before it."""
    reset = getattr(sys.modules.get("torch._dynamo"), "reset", None)
    if reset is not None:
        reset()


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half of a transformer block works in strips of two rows at least, whatever the map's size."""
    monkeypatch.setattr(strips, "_LARGE", {"cpu": 1})
    monkeypatch.setattr(strips, "_STRIP", {"cpu": 1})
    monkeypatch.setattr(strips, "_LEAST_ROWS", 2)
