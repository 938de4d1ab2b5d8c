"""What every benchmark shares: the threads, a look whether the machine is idle, the facts kept with a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import idle, rows
from benchmarks.facts import facts

THREADS = 2  # the machine that the aims are written for


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sizes", type=int, help="measure this many sizes of each op, from the first on (default: all)"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(THREADS)
    rows.sizes = config.getoption("--sizes", None)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.option.collectonly or session.config.option.benchmark_disable:
        return
    try:
        idle.check()
    except idle.BusyError as error:
        pytest.exit(str(error), returncode=4)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every row of ``BENCH`` in the module of a test that takes ``row``."""
    if "row" in metafunc.fixturenames:
        listed = rows.of(metafunc.module.BENCH)
        metafunc.parametrize("row", listed, ids=[row.id for row in listed])


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Versions and commit beside the figures: a number without them cannot be made again. No single timings:
    the medians, the quartiles and the paired ratios are what is read."""
    output_json["cpl"] = facts()
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        for key in ("fullname", "fullfunc", "params", "param", "options"):
            benchmark.pop(key, None)


@pytest.fixture(scope="session", autouse=True)
def repository_root_is_importable() -> None:
    """The processes that measure memory import this tree."""
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
