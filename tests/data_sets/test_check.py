"""`cpl data check`: every problem found, before training, and none invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cpl.cli import main
from cpl.data import DataConfig, check
from cpl.data.files import decode

from .conftest import Write

BUNDLED = {"kind": "bundled", "degradations": {"noise": "noise", "rain": "rain"}, "repeats": {"rain": 3}}


def report_of(sources: list[dict[str, Any]], **more: Any) -> Any:
    decode_all = more.pop("decode_all", False)
    return check(DataConfig.model_validate({"sources": sources, **more}), decode_all=decode_all)


def test_bundled_is_well() -> None:
    report = report_of([BUNDLED], validation={"sources": [{**BUNDLED, "split": "test"}]})
    assert report.problems == []
    assert [(r.section, r.count, r.per_epoch) for r in report.rows] == [
        ("train", 6, 24),
        ("validation", 2, 0),
    ]
    assert report.per_epoch == 24
    assert report.rows[0].smallest == (300, 451)


def test_folders_and_pairs_are_counted(write: Write, tmp_path: Path) -> None:
    for n in range(3):
        write(f"clean/{n}.png", 40 + n, 50)
        write(f"in/{n}.png")
        write(f"gt/{n}.png")
    folder = {
        "kind": "folder",
        "paths": ["clean"],
        "degradations": {"noise": "noise", "haze": "haze"},
        "count": 3,
    }
    paired = {"kind": "paired", "task": "rain", "input": "in", "target": "gt", "repeats": 5, "count": 3}
    report = report_of([folder, paired], root=tmp_path, crop=41)
    assert report.problems == []
    assert [(r.count, r.per_epoch, r.smallest) for r in report.rows] == [(3, 6, (40, 50)), (3, 15, (40, 50))]
    assert ["smaller than the crop of 41" in " ".join(r.notes) for r in report.rows] == [True, True]
    wrong = report_of([{**folder, "count": 4}, {**paired, "count": 2}], root=tmp_path)
    assert ["3 images, but the configuration expects 4" in p for p in wrong.problems] == [True, False]
    assert "3 pairs, but the configuration expects 2" in wrong.problems[1]


def test_every_missing_folder_is_named(tmp_path: Path) -> None:
    folder = {"kind": "folder", "paths": ["one", "two"], "degradations": {"noise": "noise"}}
    paired = {"kind": "paired", "task": "rain", "input": "in", "target": "gt"}
    problems = report_of([folder], root=tmp_path, validation={"sources": [paired]}).problems
    assert len(problems) == 3
    for name, problem in zip(("one", "two", "in"), problems, strict=True):
        assert f"{tmp_path / name}: no such folder" in problem
    assert problems[2].startswith("validation paired")


@pytest.mark.parametrize(("kind", "decode_all"), [("text", False), ("empty", False), ("truncated", True)])
def test_damaged_files_are_named(
    kind: str, decode_all: bool, write: Write, tmp_path: Path, damage: dict[str, Callable[[Path], None]]
) -> None:
    paths = [write(f"{n:02}.png") for n in range(24)]
    folder = {"kind": "folder", "paths": ["."], "degradations": {"noise": "noise"}}
    assert report_of([folder], root=tmp_path, decode_all=True).problems == []
    damage[kind](paths[13])
    problems = report_of([folder], root=tmp_path, decode_all=decode_all).problems
    assert len(problems) == 1
    assert str(paths[13]) in problems[0]


def test_a_sample_is_decoded_without_being_asked(
    write: Write, tmp_path: Path, damage: dict[str, Callable[[Path], None]]
) -> None:
    for n in range(24):
        damage["truncated"](write(f"{n:02}.png"))  # the headers are whole
        write(f"in/{n:02}.png")
        write(f"gt/{n:02}.png")
    folder = {"kind": "folder", "paths": ["."], "degradations": {"noise": "noise"}}
    problems = report_of([folder], root=tmp_path).problems
    assert len(problems) == 6
    assert problems[-1].endswith("and 3 more like the last")
    for n in range(24):
        damage["truncated"](tmp_path / f"gt/{n:02}.png")  # of pairs, both sides are looked at
    paired = {"kind": "paired", "task": "rain", "input": "in", "target": "gt"}
    assert "gt/00.png" in report_of([paired], root=tmp_path).problems[0]


def test_a_picture_on_its_side_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png"):
        (tmp_path / name[2:]).mkdir()
        Image.new("RGB", (50, 40)).save(tmp_path / name[2:] / name, exif=exif)
    folder = {"kind": "folder", "paths": ["jpg", "png"], "degradations": {"noise": "noise"}}
    report = report_of([folder], root=tmp_path)
    assert report.problems == []
    assert report.rows[0].smallest == decode(tmp_path / "jpg/a.jpg").shape[:2] == (50, 40)
    assert decode(tmp_path / "png/a.png").shape[:2] == (50, 40)


def test_pairs_of_two_sizes_are_named(write: Write, tmp_path: Path) -> None:
    for n in range(3):
        write(f"in/{n}.png", 40, 50)
        write(f"gt/{n}.png", 40, 50 + (n == 1))
    paired = {"kind": "paired", "task": "rain", "input": "in", "target": "gt"}
    problems = report_of([paired], root=tmp_path).problems
    assert len(problems) == 1
    assert "in/1.png is 50x40 and" in problems[0]


def preset(tmp_path: Path, **data: Any) -> str:
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({"data": data, "model": {"name": "cplir-tiny"}, "steps": 1}))
    return str(path)


def test_command(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("clean/a.png", 130, 130)
    folder = {"kind": "folder", "paths": [str(tmp_path / "clean")], "degradations": {"noise": "noise"}}
    assert main(["data", "check", preset(tmp_path, sources=[folder])]) == 0
    out = capsys.readouterr().out
    assert "all well: 1 training items per epoch" in out
    assert "130x130" in out
    assert main(["data", "check", preset(tmp_path, sources=[{**folder, "count": 2}])]) == 1
    captured = capsys.readouterr()
    assert "1 images, but the configuration expects 2" in captured.err
    assert "1 problem" in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data"], "check"),
        (["data", "check"], "preset"),
        (["data", "check", "nosuch"], "no preset named 'nosuch'"),
    ],
)
def test_command_errors_are_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
