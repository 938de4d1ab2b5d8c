"""The comparison of loss curves runs, and says how far apart they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import loss_curves


def test_it_writes_every_runs_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {name: loss_curves.RUNS[name] for name in (loss_curves.REFERENCE, "ours, keep=input")}
    monkeypatch.setattr(loss_curves, "RUNS", runs)
    out, chart = tmp_path / "curves.json", tmp_path / "curves.png"
    loss_curves.main(["--out", str(out), "--chart", str(chart), "--steps", "2", "--preset", "smoke"])
    found = json.loads(out.read_text())
    assert list(found["runs"]) == list(runs)
    assert all(len(run["losses"]) == 2 for run in found["runs"].values())
    assert found["runs"]["ours, keep=input"]["loss_apart_most"] < 1e-3
    assert chart.stat().st_size > 1000


def test_how_far_apart() -> None:
    runs = {
        "reference": {"losses": [1.0] * 10 + [2.0], "psnr": 20.0},
        "ours": {"losses": [1.0] * 9 + [1.5, 3.0], "psnr": 20.5},
    }
    found = loss_curves.compared(runs)["ours"]
    assert (found["loss_apart_first_ten"], found["loss_apart_most"], found["psnr_apart"]) == (0.5, 0.5, 0.5)
    runs["ours"]["losses"] = [1.0] * 10 + [3.0]
    assert loss_curves.compared(runs)["ours"]["loss_apart_first_ten"] == 0
