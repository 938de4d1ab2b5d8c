"""Checks the emulator on an op's CUDA C++: with any one barrier taken out, the matrix run on it must notice."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.cuda_host import build
from tests.kernels import targets
from tests.kernels.spec import Case, OpSpec

BARRIER = "__syncthreads();"
ORDERS = 4  # of the threads, of which one at least must show it


def source(op: str) -> str:
    """csrc/<op>/cuda.cu, with the headers that are its alone (cuda_*.h) in their place."""
    placed: set[str] = set()

    def place(found: re.Match[str]) -> str:
        if found[1] in placed:
            return ""
        placed.add(found[1])
        text = (build.CSRC / op / found[1]).read_text().replace("#pragma once\n", "")
        return include.sub(place, text)

    include = re.compile(rf'#include "{op}/(cuda_\w+\.h)"\n')
    return include.sub(place, (build.CSRC / op / "cuda.cu").read_text())


def count(op: str) -> int:
    return source(op).count(BARRIER)


def assert_needed(
    op: OpSpec,
    barrier: int,
    cases: Sequence[Case],
    folder: Path,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> None:
    """In some order of the threads, the result of one of ``cases`` is wrong without that barrier."""
    parts = source(op.name).split(BARRIER)
    broken = folder / "cuda.cu"
    broken.write_text(BARRIER.join(parts[: barrier + 1]) + ";" + BARRIER.join(parts[barrier + 1 :]))
    executable = build.executable([build.HERE / f"{op.name}.cpp", broken])

    def check_under_every_order() -> None:
        for seed in range(ORDERS):
            target = targets.Target("emulated", "cuda").in_order(seed)
            for case, dtype in itertools.product(cases, dtypes):
                targets.check(op, case, target, case.inputs(dtype), dtype)

    with mock.patch.object(build, "op", return_value=executable), pytest.raises(AssertionError):
        check_under_every_order()
