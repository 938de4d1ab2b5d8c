"""The report of a small result, and its chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def row(group: str, name: str, median: float, ratio: float, **extra: float) -> dict[str, Any]:
    info = {"ratio": ratio, "ratio_q1": ratio - 0.1, "ratio_q3": ratio + 0.2, "peak_bytes": 3 * 2**20}
    info |= {"gb_per_s": 12.34, "share_of_copy_bandwidth": 0.456, **extra}
    return {"group": group, "name": name, "stats": {"median": median}, "extra_info": info}


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "machine_info": {"cpu": {"brand_raw": "A CPU"}},
        "cpl": {
            "threads": 2,
            "machine_was": "idle",
            "commit": "0123456789abcdef",
            "versions": {"torch": "2.13.0", "cpl_kernels": "0.1.0"},
        },
        "datetime": "2026-11-25T06:00:00",
        "benchmarks": [
            row("op 2x3 float32 forward", "peer", 0.004, 2.0),
            row("op 2x3 float32 forward", "ours (native)", 0.002, 1.0, tflop_per_s=0.5),
            row("op 9x9 float32 forward", "ours (native)", 0.1, 1.0),
        ],
    }


def test_table(result: dict[str, Any]) -> None:
    text = report.markdown(result)
    assert text.startswith(
        "A CPU, 2 threads, idle; torch 2.13.0, cpl_kernels 0.1.0 at 0123456789ab, 2026-11-25."
    )
    ours = text.index("| ours (native) | 2.00 | 1.00x (0.90 to 1.20) | 3.0 | 12.3 | 46% | 0.50 |")
    peer = text.index("| peer | 4.00 | 2.00x (1.90 to 2.20) | 3.0 | 12.3 | 46% |  |")
    assert ours < peer, "the quickest first"
    assert text.count("TFLOP/s") == 1, "only where a row has it"
    assert text.index("**op 2x3 float32 forward**") < text.index("**op 9x9 float32 forward**")


def test_chart_and_command(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, chart = tmp_path / "result.json", tmp_path / "chart.png"
    file.write_text(json.dumps(result))
    report.main([str(file), "--chart", str(chart)])
    assert capsys.readouterr().out == report.markdown(result)
    assert chart.read_bytes().startswith(b"\x89PNG")
