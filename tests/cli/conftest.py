"""A small real checkpoint, and a way to run the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import cpl
from cpl.cli import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cplir-tiny with fresh weights: it restores nothing, but all of the machinery runs."""
    pytest.importorskip("safetensors", reason="checkpoints need the extra [restore]")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    cpl.save_checkpoint(cpl.create_model("cplir-tiny", task_names=("noise", "blur")), path, step=7)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``cpl ARGUMENTS`` and return its exit status and what it printed."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return Result(status, *capsys.readouterr())

    return call


def one_error(result: Result, *words: object) -> None:
    """A command that did nothing and said why in one line, with these words in it."""
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert str(word) in result.err
