"""`cpl degrade`: files in, files out, nothing overwritten, the same result in any order."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpl.cli import main
from cpl.degradations import names
from cpl.degradations.noise import Noise
from cpl.images import read_image

from .conftest import Write


def degrade(*arguments: object) -> int:
    return main(["degrade", *map(str, arguments)])


def test_a_file_keeps_size_format_and_depth(write: Write, tmp_path: Path) -> None:
    paths = [write("a.png"), write("b.jpg"), write("grey.png", mode="L"), write("deep.png", mode="I;16")]
    assert degrade(*paths, "--degradation", "noise:sigma=25", "--output", tmp_path / "new/out") == 0
    for path in paths:
        before, after = read_image(path), read_image(tmp_path / "new/out" / path.name)
        assert after.rgb.shape == before.rgb.shape
        assert (after.format, after.bits, after.grey) == (before.format, before.bits, before.grey)
        assert 0.01 < np.abs(after.rgb - before.rgb).mean() < 0.3


def test_seed_and_name_decide_not_the_order(write: Write, tmp_path: Path) -> None:
    a, b = write("in/a.png"), write("in/b.png")

    def run(out: str, *inputs: object, seed: int = 3) -> dict[str, bytes]:
        assert degrade(*inputs, "--degradation", "noise", "--seed", seed, "--output", tmp_path / out) == 0
        return {p.name: p.read_bytes() for p in (tmp_path / out).iterdir()}

    both = run("1", tmp_path / "in")
    assert both == run("2", b, a)
    assert both["a.png"] != both["b.png"]  # the same picture under another name: another noise
    assert run("3", b) == {"b.png": both["b.png"]}
    assert run("4", tmp_path / "in" / "*.png") == both  # a pattern that the shell left alone
    assert run("5", b, seed=4)["b.png"] != both["b.png"]


def test_folders_keep_their_sub_folders(write: Write, tmp_path: Path) -> None:
    write("in/x/1.png")
    write("in/y/1.png", seed=1)
    assert degrade(tmp_path / "in", "--degradation", "jpeg", "--output", tmp_path / "out") == 0
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")) == [
        "x/1.png", "y/1.png",
    ]  # fmt: skip


def test_inputs_are_never_overwritten(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write("a/x.png"), write("b/x.png", seed=1)
    contents = [p.read_bytes() for p in (a, b)]
    link = tmp_path / "link"
    link.symlink_to(a.parent)
    other = write("a/y.png", seed=2)
    for inputs, output in (([a], a.parent), ([a], link), ([other, tmp_path / "a"], link)):
        for option in ([], ["--overwrite"]):
            assert degrade(*inputs, "--degradation", "noise", "--output", output, *option) == 2
            error = capsys.readouterr().err
            assert "inputs are never overwritten; choose another --output\n" in error  # it has no --suffix
    # One job's output is another job's input (c/y.png, from b/c/y.png).
    write("b/c/y.png", seed=3)
    write("c/y.png", seed=4)
    nested = [tmp_path / "b", tmp_path / "c"]  # b gives c/y.png below the output, c gives y.png
    assert degrade(*nested, "--degradation", "noise", "--output", tmp_path, "--overwrite") == 2
    assert "c/y.png is the input" in capsys.readouterr().err
    assert contents == [p.read_bytes() for p in (a, b)]


def test_two_inputs_of_one_name_are_refused(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write("a/x.png"), write("b/x.png")
    assert degrade(a, b, "--degradation", "noise", "--output", tmp_path / "out") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # refused before any work


def test_existing_outputs_need_overwrite(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write("x.png"), tmp_path / "out"
    arguments = [path, "--degradation", "noise", "--output", out]
    assert degrade(*arguments) == 0
    first = (out / "x.png").read_bytes()
    assert degrade(*arguments, "--seed", 1) == 2
    assert "out/x.png already there; --overwrite replaces" in capsys.readouterr().err
    assert (out / "x.png").read_bytes() == first
    assert degrade(*arguments, "--seed", 1, "--overwrite") == 0
    assert (out / "x.png").read_bytes() != first


def test_damaged_files_are_reported_and_skipped(
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: dict[str, Callable[[Path], None]],
) -> None:
    write("in/good.png")
    damage["truncated"](write("in/cut.png"))
    damage["text"](write("in/text.jpg"))
    assert degrade(tmp_path / "in", "--degradation", "noise", "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "in/cut.png" in error
    assert "in/text.jpg" in error
    assert "2 of 3 files failed" in error
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]


def test_a_full_disk_stops_the_run(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        write(f"in/{name}.png")
    real, calls = os.fsync, []

    def full_at_the_second(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    assert degrade(tmp_path / "in", "--degradation", "noise", "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out/a.png")]
    assert "b.png: No space left on device" in captured.err
    assert "1 of 4 files failed, 2 not tried" in captured.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_out_of_memory_fails_one_file(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(self: Noise, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if image.shape[0] == 40:
            raise MemoryError
        return image

    write("in/a.png", 40)
    write("in/b.png", 20)
    monkeypatch.setattr(Noise, "__call__", exhausted)
    assert degrade(tmp_path / "in", "--degradation", "noise", "--output", tmp_path / "out") == 1
    assert "a.png: MemoryError" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]


def test_one_file_to_a_name_of_its_own(write: Write, tmp_path: Path) -> None:
    path = write("x.png")
    for output in ("y.png", "out"):
        assert degrade(path, "--degradation", "noise", "--output", tmp_path / output) == 0
    # The name that is drawn for is the input's, whatever the output is called.
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "out/x.png").read_bytes()


def test_a_newline_in_a_file_name_does_not_break_the_error_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("in/two\nlines.png").write_text("no picture")
    assert degrade(tmp_path / "in", "--degradation", "noise", "--output", tmp_path / "out") == 1
    error, summary = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {tmp_path}/in/two lines.png: not an image")
    assert summary == "1 of 1 files failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs INPUT and --degradation and --output"),
        (["x.png", "--output", "o"], "needs --degradation"),
        (["nowhere.png", "--degradation", "noise", "--output", "o"], "nowhere.png: no such file"),
        (["*.nothing", "--degradation", "noise", "--output", "o"], "no file matches"),
        (["x.png", "--degradation", "nois", "--output", "o"], "did you mean noise?"),
        (["x.png", "--degradation", "noise:sigma=999", "--output", "o"], "0 to 255"),
        (["--sheet", "sheet.gif"], ".jpg or .png"),
        (["--sheet", "nope/sheet.png"], "--sheet nope/sheet.png: there is no folder nope; create it first"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    words: str,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("x.png")
    monkeypatch.chdir(tmp_path)
    assert degrade(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert degrade("--list") == 0
    out = capsys.readouterr().out
    for name in names():
        assert f"\n{name}: " in f"\n{out}"
    assert "sigma=15|25|50" in out


def test_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpl.data import sheet

    shown = {part.split(":")[0] for spec, _, _ in sheet.EXAMPLES for part in spec.split("+")}
    assert shown == set(names()) - {"blur"}  # both kinds of blur are shown by themselves
    monkeypatch.setattr(sheet, "EXAMPLES", sheet.EXAMPLES[:2])  # two are as good as ten, and quicker
    path = tmp_path / "sheet.png"
    assert degrade("--sheet", path) == 0
    with Image.open(path) as image:
        assert min(image.size) > 200
