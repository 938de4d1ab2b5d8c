"""What a call costs beside its kernel is measured with kernels that do nothing, and they are put back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cpl_kernels
from benchmarks import call_cost, idle
from cpl_kernels import core

pytestmark = pytest.mark.skipif(not core.available(), reason="needs the native core")


def test_kernels_do_nothing_while_it_holds() -> None:
    x, weight = torch.randn(1, 4, 4, 4), torch.ones(4)
    right = cpl_kernels.layer_norm2d(x, weight, backend="reference")
    with call_cost.kernels_that_do_nothing():
        kernel = core.core().layer_norm2d_forward
        assert kernel(1, 2, 3) is True
        assert cpl_kernels.layer_norm2d(x, weight, backend="native").shape == x.shape
    torch.testing.assert_close(cpl_kernels.layer_norm2d(x, weight, backend="native"), right)


def test_every_op_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(call_cost, "CALLS", 1)
    monkeypatch.setattr(call_cost, "ROUNDS", 1)
    monkeypatch.setenv(idle.VARIABLE, "1")
    call_cost.main(["--out", str(tmp_path / "cost.json")])
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["machine_was"] != "idle"
    for op in call_cost.OPS:
        for figures in found["microseconds"][op].values():
            assert all(value > 0 for value in figures.values())
