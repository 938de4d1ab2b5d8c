"""A benchmark from its declaration to its file, in a process of its own: the same machinery, a tiny op."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness

pytestmark = pytest.mark.xdist_group("tiny benchmark")  # measured once, not by each process
ROOT = Path(__file__).resolve().parents[2]
TINY = """
import pytest
import torch

from benchmarks import harness, rows


def definition(x):
    return x * x


fixed = torch.ones(2**22).exp()  # a declaration may well have used all threads before memory.py forks
first = []


def through_a_copy(x):
    if not first:
        first.append(torch.ones(2**23).sum())  # 32 MiB in the first call only, as a compiler would take
    copies = [x.clone() for _ in range(8)]
    return copies[0] * copies[-1]


def elsewhere():
    raise harness.Unavailable("it runs elsewhere")


def make(device, dtype):
    x = torch.randn(256, 1024, device=device, dtype=dtype, requires_grad=True)  # 1 MiB
    return [x], torch.ones_like(x)


FLOOR = {"forward": 2**19, "forward+backward": 2**20}
BENCH = harness.Bench(
    op="tiny",
    problems={
        "cpu": (
            harness.Problem((256, 1024), make, FLOOR, 2**19, yardsticks={harness.COPIES: lambda x: 0 * x}),
            harness.Problem((9, 9), make, FLOOR, 2**19),
        )
    },
    implementations={"ours": lambda: definition, "copies": lambda: through_a_copy, "absent": elsewhere},
    definition=definition,
    tolerance=1e-6,
    sum_tolerance=1e-6,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_tiny(benchmark, row):
    rows.measure(benchmark, row)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What pytest said, and the file that it wrote."""
    folder = tmp_path_factory.mktemp("tree")
    kept = shutil.ignore_patterns("results", "__pycache__", "bench_*.py")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=kept)
    (folder / "benchmarks" / "bench_tiny.py").write_text(TINY)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "benchmarks/bench_tiny.py"]
    # In a worker of pytest-xdist, pytest-benchmark would measure nothing.
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**here, "CPL_BENCH_BUSY": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--sizes", "1", "--benchmark-json=result.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "result.json").read_text())


def test_a_group_has_one_row_per_implementation_that_ran(measured: tuple[str, dict[str, Any]]) -> None:
    found = sorted((row["group"], row["name"]) for row in measured[1]["benchmarks"])
    assert found == [
        (f"tiny 256x1024 float32 {passes}", name)
        for passes in ("forward", "forward+backward")
        for name in ("copies", harness.COPIES, "ours")
    ]
    assert "it runs elsewhere" in measured[0]  # the reason of the skip


def test_rows_of_a_group_share_their_rounds_and_are_compared_within_them(
    measured: tuple[str, dict[str, Any]],
) -> None:
    found = measured[1]["benchmarks"]
    for group in {row["group"] for row in found}:
        of_group = {row["name"]: row for row in found if row["group"] == group}
        together = of_group["ours"]["stats"]["rounds"]
        # On a busy machine a peer may look slower by far, which has a few of the rounds.
        assert of_group["copies"]["stats"]["rounds"] in (together, harness.FAR_ROUNDS)
        assert of_group["ours"]["stats"]["rounds"] >= harness.LEAST_ROUNDS
        assert of_group["ours"]["extra_info"]["ratio"] == 1.0
        extra = of_group["copies"]["extra_info"]
        assert extra["ratio_q1"] <= extra["ratio"] <= extra["ratio_q3"]


def test_rates_follow_from_the_declared_bytes(measured: tuple[str, dict[str, Any]]) -> None:
    for row in measured[1]["benchmarks"]:
        extra = row["extra_info"]
        assert extra["floor_bytes"] == 4 * (2**20 if "backward" in row["group"] else 2**19)
        assert extra["gb_per_s"] == pytest.approx(extra["floor_bytes"] / row["stats"]["median"] / 1e9)
        assert extra["share_of_copy_bandwidth"] > 0


def test_peak_memory_is_what_one_call_holds_beyond_its_inputs(measured: tuple[str, dict[str, Any]]) -> None:
    peaks = {
        row["name"]: row["extra_info"]["peak_bytes"] / 2**20
        for row in measured[1]["benchmarks"]
        if row["group"].endswith("forward")
    }
    # The result is 1 MiB, the 8 copies 8 more. Half a MiB: pages of Python and of the allocator, seen up to 0.1.
    one, nine = pytest.approx(1, abs=0.5), pytest.approx(9, abs=0.5)
    assert peaks == {"ours": one, "copies": nine, harness.COPIES: one}


def test_the_file_is_small_and_says_where_it_comes_from(measured: tuple[str, dict[str, Any]]) -> None:
    result = measured[1]
    assert all("data" not in row["stats"] for row in result["benchmarks"])
    assert {"versions", "commit", "threads", "machine_was"} <= result["cpl"].keys()
    assert "not checked to be idle" in result["cpl"]["machine_was"]
