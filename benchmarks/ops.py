"""The ops that are measured by themselves; knows no torch, so that a command can list them at once."""

from __future__ import annotations

from pathlib import Path

NO_OP = "step"  # bench_step.py measures the whole network
OPS = tuple(
    sorted({p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py")} - {NO_OP})
)
