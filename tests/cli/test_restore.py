"""cpl restore: what is written, what is refused, and what is left behind when something fails."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("PIL", reason="cpl restore needs the extra [restore]")
pytest.importorskip("rich", reason="cpl restore needs the extra [restore]")
pytest.importorskip("imagecodecs", reason="cpl restore needs the extra [restore]")
import imagecodecs
from PIL import Image

from cpl.errors import CplError
from cpl.inference import folder, load
from cpl.inference.folder.record import RECORD_NAME
from tests.cli.conftest import one_error


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (12, 17)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(path: Path) -> list[str]:
    """Every file below a folder but the record, hidden ones too: a temporary file left behind would show."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != RECORD_NAME)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives back its input, so that what the command itself does shows exactly."""
    monkeypatch.setattr(load, "load_model", lambda path, device: (nn.Identity(), {}))


def test_a_real_network_restores_a_file(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png")
    before = source.read_bytes()
    result = run("restore", source, "--checkpoint", checkpoint, "--output", tmp_path / "out.png")
    assert (result.status, result.err) == (0, "")
    assert "restored 1 of 1 images" in result.out
    with Image.open(tmp_path / "out.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (17, 12))
        assert not np.array_equal(
            np.asarray(image), np.asarray(Image.open(source))
        )  # it went through the network
    assert source.read_bytes() == before
    assert names(tmp_path) == ["in.png", "out.png"]
    again = run(
        "restore", source, "--checkpoint", checkpoint, "--output", tmp_path / "b.png", "--dtype", "bf16"
    )
    assert again.status == 0


@pytest.mark.usefixtures("identity")
def test_folders_keep_their_shape(run: Any, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png", 0)
    photo(tmp_path / "in/sub/b.JPG", 1)
    photo(tmp_path / "in/.hidden.png", 2)
    (tmp_path / "in/notes.txt").write_text("no image")
    out = tmp_path / "out"
    assert run("restore", tmp_path / "in", "--checkpoint", "x", "--output", out).status == 0
    assert names(out) == ["a.png"]
    result = run(
        "restore", tmp_path / "in", "--checkpoint", "x", "--output", out, "--recursive", "--overwrite"
    )
    assert result.status == 0
    assert names(out) == ["a.png", "sub/b.JPG"]
    assert (np.asarray(Image.open(out / "a.png")) == np.asarray(Image.open(tmp_path / "in/a.png"))).all()
    # An output folder inside the input is not an input of the next run.
    inside = tmp_path / "in/restored"
    for flag in ((), ("--overwrite",)):
        result = run(
            "restore", tmp_path / "in", "--checkpoint", "x", "--output", inside, "--recursive", *flag
        )
        assert result.status == 0
    assert names(inside) == ["a.png", "sub/b.JPG"]


@pytest.mark.usefixtures("identity")
def test_patterns_that_the_shell_left_alone(run: Any, tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b.png", "odd[1].png"):
        photo(tmp_path / "in" / name)
    out = tmp_path / "out"
    result = run(
        "restore", tmp_path / "in/a?.png", tmp_path / "in/odd[1].png", "--checkpoint", "x", "--output", out
    )
    assert result.status == 0
    assert names(out) == ["a1.png", "a2.png", "odd[1].png"]
    # The same file named twice is one job, not a collision.
    result = run(
        "restore",
        tmp_path / "in/b.png",
        tmp_path / "in/b*",
        "--checkpoint",
        "x",
        "--output",
        out,
        "--suffix",
        "_r",
    )
    assert result.status == 0
    assert "b_r.png" in names(out)


@pytest.mark.usefixtures("identity")
def test_every_kind_of_image_through_the_command(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    rgba = rng.integers(0, 256, (12, 17, 4)).astype(np.uint8)
    deep = rng.integers(0, 65536, (12, 17, 3)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[..., :3]).save(source / "rgb.png", exif=exif, icc_profile=b"profile" * 30)
    Image.fromarray(rgba[..., 0]).save(source / "grey.tif")
    Image.fromarray(rgba).save(source / "alpha.webp", lossless=True, exact=True)
    Image.fromarray(rgba[..., :3]).quantize(16).save(source / "palette.png")
    (source / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    result = run("restore", source, "--checkpoint", "x", "--output", out)
    assert result.status == 0
    assert "palette" in result.err
    for name in ("rgb.png", "grey.tif", "alpha.webp"):
        with Image.open(source / name) as before, Image.open(out / name) as after:
            assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
            assert after.info.get("icc_profile") == before.info.get("icc_profile")
            assert after.getexif().get(0x0112) == before.getexif().get(0x0112)
    with Image.open(out / "palette.png") as after:
        assert after.mode == "RGB"
    np.testing.assert_array_equal(imagecodecs.png_decode((out / "deep.png").read_bytes()), deep)


@pytest.mark.usefixtures("identity")
def test_a_bad_file_is_named_and_the_rest_go_on(run: Any, tmp_path: Path) -> None:
    good = photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/z.png")
    (tmp_path / "in/cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "in/text.jpg").write_text("no picture\n")
    result = run("restore", tmp_path / "in", "--checkpoint", "x", "--output", tmp_path / "out")
    assert result.status == 1
    lines = result.err.splitlines()
    assert lines[0].startswith("error: ")
    assert "cut.png: damaged" in lines[0]
    assert "text.jpg: not an image" in lines[1]
    assert "restored 2 of 4 images" in lines[2]
    assert "(2 failed)" in lines[2]
    assert len(lines) == 3
    assert names(tmp_path / "out") == ["a.png", "z.png"]


@pytest.mark.usefixtures("identity")
def test_a_newline_in_a_file_name_does_not_break_the_error_line(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "in/two\nlines.png"
    source.parent.mkdir()
    source.write_text("no picture")
    result = run("restore", source.parent, "--checkpoint", "x", "--output", tmp_path / "o\nut")
    assert result.status == 1
    error, summary = result.err.splitlines()
    assert error.startswith(f"error: {tmp_path}/in/two lines.png: not an image")
    assert error.count("two lines.png") == 1
    assert summary.startswith("restored 0 of 1")


def test_inputs_that_are_not_there(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    rest = ("--checkpoint", checkpoint, "--output", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    one_error(run("restore", tmp_path / "absent", *rest), tmp_path / "absent", "no such file or folder")
    one_error(run("restore", tmp_path / "empty", *rest), tmp_path / "empty", "no image", "--recursive")
    one_error(run("restore", tmp_path / "*.tif", *rest), "*.tif", "no file matches")
    one_error(run("restore", tmp_path / "dangling.png", *rest), "nowhere")
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_cannot_be_used(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    source, rest = photo(tmp_path / "in.png"), ("--output", tmp_path / "out")
    one_error(run("restore", source, *rest), "--checkpoint", "make demo", "cpl train")
    (tmp_path / "text.pth").write_text("not a checkpoint\n")
    for wrong in (tmp_path / "text.pth", tmp_path / "absent.safetensors", source):
        one_error(run("restore", source, "--checkpoint", wrong, *rest), wrong)
    safetensors = pytest.importorskip("safetensors", reason="checkpoints need the extra [restore]")
    from safetensors.torch import save_file

    with safetensors.safe_open(checkpoint, "pt") as file:
        metadata, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights["output.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors", metadata)
    one_error(
        run("restore", source, "--checkpoint", tmp_path / "nan.safetensors", *rest), "output.weight", "NaN"
    )
    for device in ("cuda:99", "meta"):
        one_error(run("restore", source, "--checkpoint", checkpoint, *rest, "--device", device), device)
    assert not (tmp_path / "out").exists()


def test_nan_from_the_network_is_never_written(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image / 0 * 0

    monkeypatch.setattr(load, "load_model", lambda path, device: (Broken(), {}))
    source = photo(tmp_path / "in.png")
    result = run("restore", source, "--checkpoint", "x", "--output", tmp_path / "out")
    assert result.status == 1
    assert "NaN" in result.err
    assert str(source) in result.err
    assert names(tmp_path / "out") == []


@pytest.mark.usefixtures("identity")
def test_an_input_is_never_overwritten(run: Any, tmp_path: Path) -> None:
    source = photo(tmp_path / "in/a.png")
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "hard").mkdir()
    os.link(source, tmp_path / "hard/a.png")
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft/a.png").symlink_to(source)
    for out in ("in", "link", "hard", "soft", "in/a.png", "in/../in"):
        result = run("restore", source, "--checkpoint", "x", "--output", tmp_path / out, "--overwrite")
        one_error(result, "is the input", "--suffix")
    assert source.read_bytes() == before
    result = run("restore", source, "--checkpoint", "x", "--output", tmp_path / "in", "--suffix", "_restored")
    assert result.status == 0
    assert names(tmp_path / "in") == ["a.png", "a_restored.png"]


@pytest.mark.usefixtures("identity")
def test_outputs_are_settled_before_any_work(run: Any, tmp_path: Path) -> None:
    photo(tmp_path / "x/a.png", 0)
    photo(tmp_path / "y/a.png", 1)
    out = tmp_path / "out"
    one_error(
        run("restore", tmp_path / "x", tmp_path / "y", "--checkpoint", "x", "--output", out),
        tmp_path / "x/a.png",
        tmp_path / "y/a.png",
        out / "a.png",
    )
    old = photo(out / "a.png", 2).read_bytes()
    one_error(
        run("restore", tmp_path / "x", "--checkpoint", "x", "--output", out), "already there", "--overwrite"
    )
    assert (out / "a.png").read_bytes() == old
    assert run("restore", tmp_path / "x", "--checkpoint", "x", "--output", out, "--overwrite").status == 0
    assert (out / "a.png").read_bytes() != old
    photo(tmp_path / "x/b.png")
    one_error(
        run("restore", tmp_path / "x", "--checkpoint", "x", "--output", out / "a.png"),
        "is a file's name",
        "folder",
    )
    new = tmp_path / "new.png"
    one_error(
        run("restore", tmp_path / "x", "--checkpoint", "x", "--output", new), "is a file's name", "folder"
    )
    one_error(
        run("restore", tmp_path / "x", "--checkpoint", "x", "--output", out, "--suffix", "/etc"), "--suffix"
    )
    assert names(out) == ["a.png"]


@pytest.mark.usefixtures("identity")
def test_full_disk_stops_the_run_and_leaves_whole_files_only(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        photo(tmp_path / f"in/{name}.png")
    real, calls = os.fsync, []

    def full_at_the_second(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    result = run("restore", tmp_path / "in", "--checkpoint", "x", "--output", tmp_path / "out")
    assert result.status == 1
    assert "b.png: No space left on device" in result.err
    assert "restored 1 of 4 images" in result.err
    assert "2 not tried" in result.err
    assert names(tmp_path / "out") == ["a.png"]


@pytest.mark.usefixtures("identity")
def test_interrupt_in_the_middle_of_a_write(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    real, calls = os.fsync, []

    def interrupted_at_the_second(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(handle)

    monkeypatch.setattr(os, "fsync", interrupted_at_the_second)
    result = run("restore", tmp_path / "in", "--checkpoint", "x", "--output", tmp_path / "out")
    done = f"restored 1 of 2 images to {tmp_path / 'out'} (1 not tried)"
    assert (result.status, result.err) == (130, f"interrupted: {done}; --resume goes on from here\n")
    assert names(tmp_path / "out") == ["a.png"]


def test_as_a_process_quota_and_ctrl_c(checkpoint: Path, tmp_path: Path) -> None:
    """Once as users run it: a file-size limit that the kernel enforces, then Ctrl-C in the middle."""
    for number in range(200):
        photo(tmp_path / f"in/{number:03}.png", number, size=(16, 16))
    photo(tmp_path / "in/000.png", size=(60, 60))  # the one that exceeds the limit, and the first
    limited = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        # A shell ignores SIGINT for what it starts with `&`, and children inherit that (CI may be started so).
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from cpl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    arguments = ["restore", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--output", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", limited, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (out.is_dir() and any(out.glob("*.png"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "000.png: File too large" in err
    written = names(out)
    said = err.splitlines()[-1]
    assert said.startswith(f"interrupted: restored {len(written)} of 200 images to {out} (1 failed, ")
    assert said.endswith(" not tried); --resume goes on from here")
    assert "Traceback" not in err
    assert 0 < len(written) < 199
    assert "000.png" not in written
    for name in written:
        with Image.open(io.BytesIO((out / name).read_bytes())) as image:
            image.load()  # whole


def test_plan_names_a_folder_in_the_way(tmp_path: Path) -> None:
    source = photo(tmp_path / "in/a.png")
    (tmp_path / "out/a.png").mkdir(parents=True)
    with pytest.raises(CplError, match="is a folder"):
        folder.plan([source], tmp_path / "out", overwrite=True)
