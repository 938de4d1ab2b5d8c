"""cpl info: on the core install, and about a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cpl
from cpl.extras import module_name, packages

CORE_ONLY = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # what an absent package looks like to an import
import cpl
from cpl.cli import main
cpl.create_model("cplir-tiny")
assert main(["info"]) == 0
for command in (["train", "demo"], ["restore", "a.png", "--output", "b"], ["eval"], ["degrade", "a.png"]):
    print("status of", command[0], main(command))
"""


def test_core_install_alone() -> None:
    """import, create_model and info work with torch, triton and numpy; the rest names the extra."""
    names = [*map(module_name, packages()["train"]), "imageio"]
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY.format(names=names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'cpl-kernels[train]'" in done.stdout
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status of")]
    assert statuses == [f"status of {command} 2" for command in ("train", "restore", "eval", "degrade")]
    errors = done.stderr.splitlines()
    assert len(errors) == 4
    extras = ["train", "restore", "train", "train"]
    for line, extra in zip(errors, extras, strict=True):
        assert line.startswith("error: ")
        assert f"cpl-kernels[{extra}]" in line


def test_installation(run: Any) -> None:
    result = run("info")
    assert result.status == 0
    for word in ("torch", "triton", "numpy", "python", "native core", "layer_norm2d", "35,376,967", "commit"):
        assert word in result.out


def test_checkpoint(run: Any, checkpoint: Path) -> None:
    result = run("info", checkpoint)
    assert result.status == 0
    lines = {line.split("  ")[0].strip(): line for line in result.out.splitlines() if line}
    assert lines["architecture"].endswith("cplir-tiny")
    assert lines["parameters"].endswith("2,031,942")
    assert lines["step"].endswith("7")
    assert "commit" in lines
    assert '["noise", "blur"]' in result.out


def test_a_file_that_asks_for_a_giant_is_refused_before_it_is_built(
    run: Any, checkpoint: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    import cpl

    config = cpl.create_model("cplir-tiny").config.to_dict() | {"num_blocks": [30000, 1, 1, 2]}
    metadata = {"format": "cpl-checkpoint", "format_version": "1", "architecture": "cplir-tiny"}
    path = tmp_path / "giant.safetensors"
    save_file(load_file(checkpoint), path, {**metadata, "config": json.dumps(config)})
    result = run("info", path)
    assert result.status == 2
    assert "num_blocks[0] must be at most 128, got 30000" in result.err
    assert result.err.startswith(f"error: {path}")
    assert result.err.count("\n") == 1


def test_what_is_no_checkpoint(run: Any, tmp_path: Path) -> None:
    (tmp_path / "note.safetensors").write_text("hello\n")
    for path in (tmp_path / "note.safetensors", tmp_path / "absent.safetensors", tmp_path):
        result = run("info", path)
        assert result.status == 2
        assert result.err.startswith("error: ")
        assert str(path) in result.err
        assert result.err.count("\n") == 1


def test_architecture_says_what_a_lightning_file_holds(run: Any, tmp_path: Path) -> None:
    state = cpl.create_model("cplir-tiny").state_dict()
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"net.{name}": value for name, value in state.items()}}, file)
    refused = run("info", file)
    assert refused.status == 2
    assert "--architecture cplir or --architecture promptir" in refused.err
    told = run("info", file, "--architecture", "promptir")
    assert told.status == 0
    assert "promptir" in told.out
    unknown = run("info", file, "--architecture", "resnet")
    assert unknown.status == 2
    assert "no model 'resnet'" in unknown.err


def test_architecture_of_our_own_file_is_refused(run: Any, checkpoint: Path) -> None:
    refused = run("info", checkpoint, "--architecture", "cplir")
    assert refused.status == 2
    assert "says itself what it is" in refused.err


@pytest.mark.parametrize("command", ["restore", "eval", "serve", "inspect", "info"])
def test_every_command_that_loads_a_checkpoint_takes_it(run: Any, command: str) -> None:
    assert "--architecture NAME" in run(command, "--help").out
