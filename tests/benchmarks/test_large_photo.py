"""python -m benchmarks.large_photo on a small one."""

from __future__ import annotations

import pytest

from benchmarks import large_photo


def test_a_case() -> None:
    row = large_photo.measured("cplir-tiny:60x44:64MB:compare")
    assert row["largest_difference"] <= 1e-4
    assert row["seconds_per_megapixel"] * row["megapixels"] == pytest.approx(row["seconds"])
    assert row["seconds"] > 0
    assert row["peak_anonymous_bytes"] >= 0


def test_all_listed_cases_can_be_read() -> None:
    for case in large_photo.CASES:
        name, size, limit, *compare = case.split(":")
        assert name.startswith("cplir")
        assert "x" in size
        assert limit.endswith("GB")
        assert compare in ([], ["compare"])
