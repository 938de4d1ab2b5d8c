"""What tests of cpl.patch share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cpl.interop import comparison


@pytest.fixture
def brief_comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests of what happens after a block was taken: two images instead of 79, one second a block less."""
    monkeypatch.setattr(comparison, "thorough", lambda *_: iter(comparison.quick()))
    yield
