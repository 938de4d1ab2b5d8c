"""cpl restore of large photos: the options of windows and tiles, what they say, and what is refused first."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="cpl restore needs the extra [restore]")
pytest.importorskip("rich", reason="cpl restore needs the extra [restore]")
import rich.progress
from PIL import Image

import cpl
from cpl.inference import load
from cpl.inference.streaming import plan
from cpl.models.restorer import Restorer


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def least() -> int:
    """Bytes of memory for that photo, the rest in scratch files."""
    return plan(cpl.create_model("cplir-tiny"), 70, 120, 2**40).least


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_tiles(run: Any, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    made = []
    for name, options in (
        ("whole", ()),
        ("tiles", ("--tile", "64")),
        ("overlapping", ("--tile", "64", "--overlap", "32")),
        ("bf16", ("--tile", "64", "--overlap", "32", "--dtype", "bf16")),
        ("one", ("--tile", "128")),
    ):
        out = tmp_path / f"{name}.png"
        result = run("restore", photo, "--checkpoint", checkpoint, "--output", out, *options)
        assert (result.status, result.err) == (0, "")
        made.append(pixels(out))
    whole, tiles, overlapping, bf16, one = made
    assert all(0 < np.abs(other - whole).mean() < 8 for other in (tiles, overlapping, bf16))
    assert not np.array_equal(tiles, overlapping)
    assert not np.array_equal(overlapping, bf16)
    assert np.array_equal(one, whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tile", "100"), ("error: --tile must be a multiple of 8", "got 100")),
        (("--tile", "64", "--overlap", "40"), ("error: --overlap must be", "got 40")),
        (("--overlap", "8"), ("error: --overlap is that of tiles",)),
        (("--tile", "64", "--memory", "1GB"), ("error: --memory restores exactly", "not both")),
        (("--tile", "large"), ("--tile", "large")),
        (("--memory", "2 apples"), ("error: --memory must be", "2 apples")),
    ],
)
def test_refused_before_the_checkpoint_is_read(
    run: Any, photo: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    absent = tmp_path / "absent.safetensors"  # not what is complained about
    result = run("restore", photo, "--checkpoint", absent, "--output", tmp_path / "out.png", *options)
    assert result.status == 2
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
    assert str(absent) not in result.err


def test_windows_say_their_plan_and_the_margin(
    run: Any, checkpoint: Path, photo: Path, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.png"
    options = ("--checkpoint", checkpoint, "--output", out, "--memory", least)
    result = run("restore", photo, *options)
    assert result.status == 0
    planned, margin = result.err.splitlines()
    assert planned.startswith("in.png: 120x70 in windows of ")
    for word in (" MiB of memory with ", " of scratch files in ", " feature maps"):
        assert word in planned
    assert margin.startswith("in.png: the smallest margin of the router's choice is 0.")

    monkeypatch.setattr("cpl.inference.streaming.restore.CLOSE", 1.0)
    monkeypatch.setattr("cpl.inference.streaming.CLOSE", 1.0)
    result = run("restore", photo, *options, "--overwrite")
    assert result.status == 0
    assert result.err.splitlines()[1].startswith("warning: in.png: the smallest margin")
    assert result.err.splitlines()[1].endswith("might choose other prompts")


def test_the_plan_comes_before_the_work_and_without_prompts_no_margin(
    run: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = cpl.create_model("restormer", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1).eval()
    monkeypatch.setattr(load, "load_model", lambda path, device: (plain, {}))
    options = ("--checkpoint", "x", "--output", tmp_path / "out.png", "--memory", "1GB")
    result = run("restore", photo, *options)
    assert result.status == 0
    (planned,) = result.err.splitlines()
    assert planned.startswith("in.png: 120x70 in one window")

    def fail(*_: object) -> None:
        raise ValueError("the work has begun")

    monkeypatch.setattr(plain.patch_embed, "forward", fail)
    result = run("restore", photo, *options, "--overwrite")
    assert result.status == 1
    first, second, _ = result.err.splitlines()
    assert first == planned
    assert second == f"error: {photo}: the work has begun"


def test_a_disk_without_room_is_an_error_before_any_work(
    run: Any, checkpoint: Path, photo: Path, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("cpl.inference.streaming.restore.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr(Restorer, "__call__", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(
        "cpl.inference.streaming.workspace.Workspace._file", lambda *_: pytest.fail("a file was made")
    )
    out = tmp_path / "out.png"
    result = run("restore", photo, "--checkpoint", checkpoint, "--output", out, "--memory", least)
    assert result.status == 1
    error, summary = result.err.splitlines()  # and no plan, which would say that it begins
    for word in ("error: ", "in.png", "of scratch files", "0 MiB free", "set TMPDIR"):
        assert word in error
    assert "1 failed" in summary
    assert not out.exists()


def test_a_scratch_disk_that_others_fill_fails_one_image(
    run: Any, checkpoint: Path, photo: Path, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the first image; the second finds room again."""
    shutil.copy(photo, tmp_path / "second.png")
    allocate, calls = os.posix_fallocate, []

    def full_at_the_second(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full_at_the_second)
    out = tmp_path / "out"
    options = ("--checkpoint", checkpoint, "--output", out, "--memory", least)
    result = run("restore", photo, tmp_path / "second.png", *options)
    assert result.status == 1
    (error,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    for word in ("in.png: ", "no room for", "No space left on device", "set TMPDIR to a larger disk"):
        assert word in error
    assert result.err.splitlines()[-1] == f"restored 1 of 2 images to {out} (1 failed)"
    assert [path.name for path in out.glob("*.png")] == ["second.png"]


def test_the_bar_moves_within_a_file(
    run: Any, checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[float] = []
    update = rich.progress.Progress.update
    monkeypatch.setattr(
        rich.progress.Progress,
        "update",
        lambda bar, task, completed: moves.append(completed) or update(bar, task, completed=completed),
    )
    shutil.copy(photo, tmp_path / "second.png")
    out = tmp_path / "out"
    options = ("--checkpoint", checkpoint, "--output", out, "--tile", "64")
    assert run("restore", photo, tmp_path / "second.png", *options).status == 0
    assert moves == sorted(moves)
    assert moves[-1] == 2.0
    assert all(any(file < move < file + 1 for move in moves) for file in (0, 1))
