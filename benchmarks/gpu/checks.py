"""The stages that are other programs: pip, pytest, compute-sanitizer. What is run, and what is read from it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import stages

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
BUILD = [*PIP, "-v", "--no-build-isolation", "-e", "."]
# All that is marked ``gpu`` stands here; other tests need packages that a machine with a GPU may not have.
GPU_TESTS = "tests/kernels"
PROCESSES = min(12, os.cpu_count() or 1)  # most of a GPU test is compilation, on the CPU
FAILURES_KEPT = 50

TOOLS = ("memcheck", "racecheck")
# Without torch's pool every tensor is an allocation of its own, and one element past its end is an error.
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def install_wheels(wheels: Sequence[Path]) -> list[str]:
    return [*PIP, *map(str, wheels)]


def build_environment() -> dict[str, str]:
    """One architecture, that of the GPU lent to this project, unless the caller says otherwise."""
    return {"CPL_CUDA_ARCHS": os.environ.get("CPL_CUDA_ARCHS", "90a"), "CPL_FORCE_CUDA": "1"}


def read_build(text: str) -> dict[str, Any]:
    """What setup.py decided."""
    said = (line.strip() for line in text.splitlines())
    return {"said": [line for line in said if line.startswith("cpl-kernels:")]}


def tests(collect_only: bool) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", GPU_TESTS, "-p", "no:cacheprovider"]
    if collect_only:
        return [*command, "--collect-only", "-q"]
    return [*command, "-v", "--continue-on-collection-errors", "-n", str(PROCESSES), "--dist", "loadgroup"]


def read_tests(text: str) -> dict[str, Any]:
    """The closing line and the failures; of a run that was killed, how far it came."""
    lines = text.splitlines()
    closing = [line.strip("= ") for line in lines if re.search(r"\b(in|no tests).* \d*\.?\d+s\b", line)]
    failures = [line for line in lines if re.match(r"(FAILED|ERROR) tests/", line)]
    so_far = {word: len(re.findall(rf"\b{word}\b", text)) for word in ("PASSED", "FAILED", "SKIPPED")}
    seen = ", ".join(f"{count} {word.lower()}" for word, count in so_far.items() if count)
    if not closing:  # the summary, which names failures, has not been written either
        failures = [line for line in lines if re.search(r"\bFAILED\b", line)]
    return {
        "closing_line": closing[-1] if closing else f"no closing line; so far {seen or 'nothing'}",
        "failures": failures[:FAILURES_KEPT],
        "failures_left_off": max(0, len(failures) - FAILURES_KEPT),
    }


def sanitizer() -> str | None:
    """compute-sanitizer from PATH or beside nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def under(tool: str, sanitizer: str | None, command: Sequence[str]) -> list[str]:
    return [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *command]


def read_small_calls(text: str) -> dict[str, Any]:
    """Which calls were made; the last one begun but not done is where a crash was."""
    lines = text.splitlines()
    begun = [line.removeprefix("call: ") for line in lines if line.startswith("call: ")]
    wrong = [line for line in lines if line.startswith(("failed: ", "left out: "))]
    return {"calls": begun, "notes": wrong}


def read_sanitizer(text: str) -> dict[str, Any]:
    """With its own summary, and its errors under the call that they belong to."""
    errors, current = [], "before the first call"
    for line in text.splitlines():
        if line.startswith("call: "):
            current = line.removeprefix("call: ")
        elif re.match(r"=+ (Error|Invalid|Warning|Race|Misaligned|Uninitialized|Program hit)", line):
            errors.append(f"{current}: {line.strip('= ')}")
    summary = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
    return {
        **read_small_calls(text),
        "summary": summary[-1] if summary else "no summary",
        "errors": errors[:FAILURES_KEPT],
    }


def read_cases(text: str) -> dict[str, Any]:
    """What was measured; a case or an implementation that failed is a failure of the stage."""
    cases = stages.json_lines(text)
    failed = sum("error" in case or bool(case.get("failed")) for case in cases)
    if not failed:
        return {"cases": cases}
    return {
        "cases": cases,
        "state": stages.FAILED,
        "why": f"{failed} of {len(cases)} sizes not as they should be",
    }
