"""What the figures were taken on and with, as one line of JSON: python -m benchmarks.gpu.machine --device cuda"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu.stages import ROOT

CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
PACKAGES = ("torch", "triton", "numpy", "setuptools", "pybind11", "cmake", "ninja", "pytest")


def said(*command: str) -> str | None:
    """The output of a program, or None where it is not or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """Of the checkout; where the tree was sent without its history, of the file COMMIT, as setup.py has it.

    COMMIT comes first: who sends a tree may leave another .git there than the one that it was made with.
    """
    kept = ROOT / "COMMIT"
    if kept.exists():
        return kept.read_text().strip()
    if (ROOT / ".git").exists() and (head := said("git", "rev-parse", "HEAD")):
        changed = said(
            "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
        )
        return f"{head} with changes that are not committed" if changed else head
    return "unknown"


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def device(kind: str) -> dict[str, Any]:
    if kind == "cpu":
        return {"device": f"CPU, {os.cpu_count()} cores"}
    about = torch.cuda.get_device_properties(0)
    clocks = said("nvidia-smi", "--id=0", f"--query-gpu={CLOCKS}", "--format=csv,noheader")
    names = CLOCKS.split(",")
    return {
        "device": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "l2_bytes": about.L2_cache_size,
        "driver": said("nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": dict(zip(names, clocks.split(", "), strict=True)) if clocks else "not readable",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    kind = parser.parse_args().device
    nvcc = said("nvcc", "--version")
    facts = {
        **device(kind),
        "commit": commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "torch_cuda": torch.version.cuda or "none",
        "nvcc": nvcc.splitlines()[-1] if nvcc else "absent",
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
