"""Which version and commit made a checkpoint."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import cpl_kernels


@functools.cache
def commit() -> str:
    """The git commit of the checkout that is running, else the one this copy was built from, else "unknown"."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return result.stdout.strip()
        except (OSError, subprocess.SubprocessError):  # no git, or not our right to read it
            pass
    return str(cpl_kernels.config()["commit"])
