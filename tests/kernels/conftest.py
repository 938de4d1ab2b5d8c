"""Memory that nobody has written is NaN in these tests, so that a result nobody wrote is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from cpl_kernels import core
from cpl_kernels.info_nce import workspace


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic mode fills every torch.empty with NaN, and makes a non-deterministic op an error."""
    torch.use_deterministic_algorithms(True)
    workspace.forget()  # what is kept from another test is not NaN
    if (
        "CPL_TEST_CORE" in os.environ
    ):  # under sanitizers: each piece of memory by itself, with an end of its own
        monkeypatch.setattr(workspace, "MOST", 0)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_large_cache() -> Iterator[None]:
    """The C++ kernels write past the caches what they would on a machine whose last cache is small."""
    module = core.core()
    before = module.last_level_cache()
    module.set_last_level_cache(0)
    yield
    module.set_last_level_cache(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that set the number of threads: it is set back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
