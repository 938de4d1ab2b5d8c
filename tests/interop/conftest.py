"""What tests of cpl.patch share."""

from __future__ import annotations

import pytest

from cpl.interop import comparison


@pytest.fixture
def brief_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what happens after a block was taken: two images instead of a hundred, one second a block less."""
    monkeypatch.setattr(comparison, "thorough", lambda *_: iter(comparison.quick()))
