"""The table of defaults says what its results files say, and a call gets what the table says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import cpl_kernels
from cpl_kernels import backends, dispatch

ROOT = Path(__file__).resolve().parents[2]
# A measured ratio to the next in order that still counts as not slower: the spread of repeated runs.
SPREAD = 1.05


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dispatch.Row]]:
    """A table to fill in, in place of the real one."""
    rows: list[dispatch.Row] = []
    monkeypatch.setattr(dispatch, "TABLE", rows)
    for cached in (dispatch.row, dispatch._order):
        cached.cache_clear()
    yield rows
    for cached in (dispatch.row, dispatch._order):
        cached.cache_clear()


def measured(row: dispatch.Row, dtype: str, size: str) -> dict[str, float]:
    """Backend -> time against the reference, as the cited file has it."""
    result = json.loads((ROOT / row.evidence).read_text())
    assert result["family"] == row.family
    # Files from before an op had variants measured its first.
    first = dispatch.VARIANTS.get(row.op, ("",))[0]
    wanted = (row.op, row.variant, dtype, size)
    found = [
        c for c in result["cases"] if (c["op"], c.get("variant", first), c["dtype"], c["size"]) == wanted
    ]
    assert len(found) == 1, f"{row.evidence} has {len(found)} cases for {wanted}"
    return {name: figures["against_reference"] for name, figures in found[0]["backends"].items()}


@pytest.mark.parametrize("row", dispatch.TABLE, ids=lambda row: f"{row.op}{row.variant}-{row.family}")
def test_rows_order_backends_as_they_were_measured(row: dispatch.Row) -> None:
    assert row.op in backends.OPS
    assert row.order[-1] == "reference", "what serves every call comes last"
    if row.evidence.endswith(".md"):  # a page of measurements from before benchmarks.dispatch knew the op
        assert row.op == "pointwise_conv"
        assert row.family == "sm_90" or row.evidence.startswith("by analogy with sm_90: ")
        assert "conv2d against a batched product" in (ROOT / row.evidence.split(": ")[-1]).read_text()
        return
    for dtype in row.dtypes:
        for size in row.sizes:
            ratios = measured(row, dtype, size)
            taken = [ratios[name] for name in row.order]
            for faster, slower in itertools.pairwise(taken):
                assert faster <= slower * SPREAD, f"{row.op} {dtype} {size}: {ratios}, order {row.order}"


def test_no_two_rows_hold_for_one_call() -> None:
    seen = set()
    for row in dispatch.TABLE:
        for dtype in row.dtypes:
            assert dtype in dispatch.DTYPES
            for size in row.sizes:
                assert size in dispatch.SIZES
                assert row.variant in dispatch.VARIANTS.get(row.op, ("",))
                key = (row.op, row.variant, row.family, dtype, size)
                assert key not in seen
                seen.add(key)


def test_size_classes() -> None:
    sizes = [dispatch.size_class(n) for n in (0, 1, 2**14 - 1, 2**14, 2**20 - 1, 2**20, 2**40)]
    assert sizes == ["small", "small", "small", "medium", "medium", "large", "large"]


def test_a_call_gets_the_row_of_its_dtype_and_size(table: list[dispatch.Row]) -> None:
    table.append(
        dispatch.Row("layer_norm2d", "cpu", ("float32",), ("medium",), ("native", "reference"), "file")
    )
    small, medium, large = (torch.empty(n) for n in (2**14 - 1, 2**14, 2**20))
    assert dispatch.order("layer_norm2d", (medium,)) == ("native", "reference")
    assert dispatch.order("layer_norm2d", (small, medium)) == ("native", "reference"), (
        "the largest tensor counts"
    )
    for other in (small, large, medium.double(), medium.bfloat16()):
        assert dispatch.order("layer_norm2d", (other,)) == ("reference",)
    assert dispatch.order("route_topk", (medium,)) == ("reference",)
    assert dispatch.order("layer_norm2d", (torch.empty(0),)) == ("reference",)


def test_show_config_says_where_a_row_holds_and_what_is_unmeasured(table: list[dispatch.Row]) -> None:
    table.append(
        dispatch.Row("layer_norm2d", "cpu", ("float32",), ("medium", "large"), ("reference",), "a.json")
    )
    line = backends.config()["ops"]["layer_norm2d"]["cpu"]
    assert "reference for float32 medium, large (a.json)" in line
    assert f"reference for float32 small; bfloat16, float16, float64 ({dispatch.UNMEASURED})" in line
    assert line.endswith("by name: native, triton, cuda")


def test_a_row_of_one_variant_says_nothing_of_another(table: list[dispatch.Row]) -> None:
    both = ("native", "reference")
    table.append(dispatch.Row("dwconv", "cpu", dispatch.DTYPES, tuple(dispatch.SIZES), both, "file", "3x3"))
    x = (torch.empty(1),)
    assert dispatch.order("dwconv", x, "3x3") == both
    assert dispatch.order("dwconv", x, "5x5") == dispatch.order("dwconv", x, "7x7") == ("reference",)
    line = backends.config()["ops"]["dwconv"]["cpu"]
    assert "native for 3x3 (file)" in line or "reference for 3x3 (file)" in line  # without the core
    assert f"reference for 5x5, 7x7 ({dispatch.UNMEASURED})" in line


def test_no_gpu_gets_a_dwconv_that_it_has_not_measured() -> None:
    for size, dtype in itertools.product(dispatch.SIZES, dispatch.DTYPES):
        assert dispatch.row("dwconv", "sm_90", dtype, size, "3x3") is not None
        for variant in ("5x5", "7x7"):
            assert dispatch.row("dwconv", "sm_90", dtype, size, variant) is None


def test_a_call_of_dwconv_gets_the_row_of_its_kernel_size(table: list[dispatch.Row]) -> None:
    both = ("native", "reference")
    table.append(dispatch.Row("dwconv", "cpu", dispatch.DTYPES, tuple(dispatch.SIZES), both, "file", "5x5"))
    asked: list[str] = []
    with mock.patch.object(
        dispatch, "order", side_effect=lambda op, tensors, variant: asked.append(variant) or both
    ):
        for k in (3, 5, 7):
            cpl_kernels.dwconv(torch.ones(1, 2, 3, 3), torch.ones(2, 1, k, k))
    assert asked == ["3x3", "5x5", "7x7"]


def test_devices_are_told_apart_by_family() -> None:
    assert dispatch.family(torch.device("cpu")) == "cpu"
    if not torch.cuda.is_available():
        assert dispatch.family(torch.device("cuda")) == "cuda"
