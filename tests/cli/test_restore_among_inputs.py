"""cpl restore into a folder that lies among the inputs: what earlier runs made there is never taken for an input."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("PIL", reason="cpl restore needs the extra [restore]")
pytest.importorskip("rich", reason="cpl restore needs the extra [restore]")
pytest.importorskip("imagecodecs", reason="cpl restore needs the extra [restore]")

from cpl.cli.restore import EPILOG
from cpl.inference import load
from cpl.inference.folder.record import RECORD_NAME
from tests.cli.test_restore import names, one_error, photo

ORIGINALS = ["s0.tif", "s1.tif", "s2.tif"]
RESTORED = ["s0_restored.tif", "s1_restored.tif", "s2_restored.tif"]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda path, device: (nn.Identity(), {}))


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(ORIGINALS):
        photo(tmp_path / "scans" / name, number)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "scans"


def the_example_with_a_suffix() -> list[str]:
    """As it stands in ``cpl restore --help``."""
    (line,) = (line for line in EPILOG.splitlines() if "--suffix" in line)
    return shlex.split(line)[1:]


@pytest.mark.parametrize("inputs", ["pattern", "folder", "files"])
def test_the_example_of_the_help_goes_on_with_resume(run: Any, scans: Path, inputs: str) -> None:
    restore, pattern, *options = the_example_with_a_suffix()
    before = {name: (scans / name).read_bytes() for name in ORIGINALS}
    assert run(restore, pattern, *options, "--resume").out == "restored 3 of 3 images to scans/\n"
    assert names(scans) == sorted(ORIGINALS + RESTORED)

    def again(*flags: str) -> Any:
        # "files": as the shell expands the pattern where it is not quoted
        given = {"pattern": [pattern], "folder": ["scans"], "files": sorted(scans.glob("*.tif"))}[inputs]
        return run(restore, *given, *options, *flags)

    assert again("--resume").out == "restored 0 of 3 images to scans/ (3 finished before)\n"
    (scans / RESTORED[2]).unlink()  # as in a run that was interrupted
    assert again("--resume") == (0, "restored 1 of 3 images to scans/ (2 finished before)\n", "")
    one_error(again(), "already there", "--overwrite", "--resume")
    assert again("--overwrite").out == "restored 3 of 3 images to scans/\n"
    assert names(scans) == sorted(ORIGINALS + RESTORED)  # and no s0_restored_restored.tif
    assert {name: (scans / name).read_bytes() for name in ORIGINALS} == before


@pytest.mark.parametrize("inputs", ["link/*.tif", "more/../scans/*.tif", "link", "l*"])
@pytest.mark.parametrize("output", ["scans", "link"])
def test_the_output_folder_by_another_name(run: Any, scans: Path, inputs: str, output: str) -> None:
    (scans.parent / "link").symlink_to(scans)
    (scans.parent / "more").mkdir()
    options = ("--checkpoint", "x", "--suffix", "_r", "--resume", "--output", output)
    assert run("restore", "scans", *options).out == f"restored 3 of 3 images to {output}\n"
    result = run("restore", inputs, *options)
    if inputs == "l*":  # begins above the output folder
        one_error(result, "nothing outside of the output folder")
    else:
        assert result == (0, f"restored 0 of 3 images to {output} (3 finished before)\n", "")


def test_subfolders_of_a_folder_that_is_input_and_output(run: Any, scans: Path) -> None:
    photo(scans / "sub/t.tif", 5)
    arguments = ("restore", "scans", "--recursive", "--checkpoint", "x", "--output", "scans")
    assert run(*arguments, "--suffix", "_r").status == 0
    result = run(*arguments, "--suffix", "_r", "--resume")
    assert result == (0, "restored 0 of 4 images to scans (4 finished before)\n", "")
    assert len(names(scans)) == 8


@pytest.mark.parametrize("known", [True, False])
def test_a_pattern_that_reaches_into_the_output_folder(run: Any, scans: Path, known: bool) -> None:
    """Left out as a whole, also where no record says which files earlier runs made."""
    arguments = ("restore", "scans/**/*.tif", "--checkpoint", "x", "--output", "scans/out")
    assert run(*arguments).status == 0
    if not known:
        (scans / "out" / RECORD_NAME).unlink()
    photo(scans / "out/of another program.tif", 6)
    result = run(*arguments, "--resume" if known else "--overwrite")
    done = "restored 0 of 3 images to scans/out (3 finished before)" if known else "restored 3 of 3 images"
    assert result.status == 0, result.err
    assert done in result.out
    assert names(scans / "out") == ["of another program.tif", *ORIGINALS]


def test_outputs_alone_are_nothing_to_restore(run: Any, scans: Path) -> None:
    restore, pattern, *options = the_example_with_a_suffix()
    assert run(restore, pattern, *options).status == 0
    again = run(restore, "scans/*_restored.tif", *options[:-1], "_again")
    one_error(again, RESTORED[0], "2 more are outputs of an earlier run into scans", "another --output")
    one_error(run(restore, scans / RESTORED[1], *options), f"{RESTORED[1]} is the output of an earlier run")
    assert run(restore, "scans/*_restored.tif", *options[:2], "--output", "again").status == 0
    assert names(scans.parent / "again") == RESTORED


def test_a_pattern_that_matches_in_the_output_folder_alone(run: Any, scans: Path) -> None:
    """It begins above that folder, which is left out as it is of a folder with --recursive."""
    restore, _, *options = the_example_with_a_suffix()
    one_error(run(restore, "**/*.tif", *options), "**/*.tif", "nothing outside of the output folder scans")
    photo(scans.parent / "more/m.tif", 8)
    assert run(restore, "**/*.tif", *options).out == "restored 1 of 1 images to scans/\n"
    folders = run(restore, "*", "--recursive", *options, "--resume")  # more and scans, and no file
    assert folders.out == "restored 0 of 1 images to scans/ (1 finished before)\n"


def test_what_nobody_recorded_is_an_input_and_never_overwritten(run: Any, scans: Path) -> None:
    other = photo(scans / RESTORED[0], 7).read_bytes()
    restore, pattern, *options = the_example_with_a_suffix()
    for flag in ("--resume", "--overwrite"):
        one_error(run(restore, pattern, *options, flag), RESTORED[0], "is the input")
    assert (scans / RESTORED[0]).read_bytes() == other
    assert names(scans) == sorted([*ORIGINALS, RESTORED[0]])


def test_a_recorded_name_that_is_a_link_to_an_input(run: Any, scans: Path) -> None:
    """The input is still one, and is not written through the link."""
    arguments = ("restore", "scans", "--checkpoint", "x", "--output", "out")
    assert run(*arguments).status == 0
    before = (scans / "s0.tif").read_bytes()
    (scans.parent / "out/s0.tif").unlink()
    (scans.parent / "out/s0.tif").symlink_to(scans / "s0.tif")
    for inputs in (("out", "scans"), ("scans", "out")):
        result = run("restore", *inputs, *arguments[2:], "--resume")
        one_error(result, "out/s0.tif is the input scans/s0.tif")
    (scans / "link.tif").symlink_to(scans.parent / "out/s1.tif")
    result = run("restore", "scans/link.tif", *arguments[2:])  # which lies elsewhere, whatever it leads to
    assert (result.status, result.out) == (0, "restored 1 of 1 images to out\n")
    assert (scans / "s0.tif").read_bytes() == before


def test_a_file_as_output_is_no_folder_to_leave_out(run: Any, scans: Path) -> None:
    arguments = ("restore", "scans/*.tif", "--checkpoint", "x", "--output", "scans/s0.tif")
    one_error(run(*arguments, "--overwrite"), "is a file's name", "3 images")
    one_error(run("restore", "scans/s1.tif", *arguments[2:], "--resume"), "leave --resume out")
