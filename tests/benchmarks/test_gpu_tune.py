"""python -m benchmarks.gpu.tune, with the CPU's kernels in the place of a GPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.stages import ROOT, json_lines


def test_settings_are_timed_and_what_fails_is_named(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.json"
    small = {"op": "dwconv", "backend": "native", "sizes": [3]}
    jobs.write_text(json.dumps([small, {**small, "set": {"NO_SUCH_CONSTANT": 1}}]))
    command = [sys.executable, "-m", "benchmarks.gpu.tune", str(jobs), "--device", "cpu", "--seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    timed, wrong = sorted(json_lines(done.stdout), key=lambda line: "error" in line)
    assert (timed["shape"], timed["dtype"]) == ("1x1152x16x16", "float32")
    assert min(timed["forward"], timed["forward+backward"]) > 0
    assert "NO_SUCH_CONSTANT" in wrong["error"]
