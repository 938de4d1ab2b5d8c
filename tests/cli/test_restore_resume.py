"""cpl restore --resume: what is known to be finished, by content, and what is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("PIL", reason="cpl restore needs the extra [restore]")
pytest.importorskip("rich", reason="cpl restore needs the extra [restore]")
pytest.importorskip("imagecodecs", reason="cpl restore needs the extra [restore]")

from cpl.inference import load
from cpl.inference.folder import record
from cpl.inference.folder.record import RECORD_NAME, Record
from tests.cli.test_restore import names, one_error, photo

ROOT = Path(__file__).parents[2]


class Darker(nn.Module):
    """A network with one weight, which notes how often it ran."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return image * self.factor


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Darker:
    network = Darker()
    monkeypatch.setattr(load, "load_model", lambda path, device: (network, {}))
    return network


@pytest.fixture
def cpl(run: Any, tmp_path: Path) -> Callable[..., Any]:
    """``cpl restore IN --output OUT`` with four photos, and whatever else is given."""
    for number, name in enumerate(("a.png", "b.tif", "sub/c.png", "sub/d.png")):
        photo(tmp_path / "in" / name, number)
    arguments = ("restore", tmp_path / "in", "--recursive", "--checkpoint", "x", "--output", tmp_path / "out")
    return lambda *more: run(*arguments, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name stands for: one that was written again is another, of a later time."""
    status = {name: (folder / name).stat() for name in names(folder)}
    return {name: (s.st_ino, s.st_mtime_ns) for name, s in status.items()}


def same_size_and_time(path: Path, change: Callable[[bytes], bytes]) -> None:
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(change(data))
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_what_is_finished_is_left_alone(cpl: Any, model: Darker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cpl("--resume").out == f"restored 4 of 4 images to {out}\n"  # nothing to go on with is no error
    before, calls = files(out), model.calls
    result = cpl("--resume")
    assert result == (0, f"restored 0 of 4 images to {out} (4 finished before)\n", "")
    assert (files(out), model.calls) == (before, calls)
    photo(tmp_path / "in/sub/later.png", 9)  # as in a folder that still fills
    assert cpl("--resume").out == f"restored 1 of 5 images to {out} (4 finished before)\n"
    assert before.items() <= files(out).items()
    one_error(cpl(), "already there", "--overwrite", "--resume")
    calls = model.calls
    assert (
        cpl("--overwrite").out == f"restored 5 of 5 images to {out}\n"
    )  # without --resume nothing is looked up
    assert model.calls == calls + 5


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("input", ["a.png"]),
        ("output", ["a.png"]),
        ("output gone", ["a.png"]),
        ("output cut short", ["a.png"]),
        ("model", ["a.png", "b.tif", "sub/c.png", "sub/d.png"]),
        ("dtype", ["a.png", "b.tif", "sub/c.png", "sub/d.png"]),
        ("nothing that changes the result", []),
    ],
)
def test_what_has_changed_is_done_again(
    cpl: Any, model: Darker, tmp_path: Path, change: str, again: list[str]
) -> None:
    out, more = tmp_path / "out", []
    assert cpl().status == 0
    before = files(out)
    source, output = tmp_path / "in/a.png", out / "a.png"
    if change == "input":
        other = photo(tmp_path / "other.png", 7).read_bytes()
        assert len(other) == source.stat().st_size, "noise that PNG cannot make smaller: the size stays"
        same_size_and_time(source, lambda _: other)
    elif change == "output":
        same_size_and_time(output, flip_last)
    elif change == "output gone":
        output.unlink()
    elif change == "output cut short":
        output.write_bytes(output.read_bytes()[:100])
    elif change == "model":
        with torch.no_grad():
            model.factor.mul_(0.5)
    elif change == "dtype":
        more = ["--dtype", "bf16"]
    else:
        (tmp_path / "in").rename(tmp_path / "moved")
        (tmp_path / "in").symlink_to(tmp_path / "moved")
        os.utime(source)
        more = ["--device", "cpu"]
    result = cpl("--resume", *more)
    assert result.status == 0, result.err
    after = files(out)
    assert sorted(name for name in after if after[name] != before.get(name)) == again
    expected = tmp_path / "expected"
    cpl("--output", expected, *more)  # the last --output counts
    assert contents(out) == contents(expected)
    assert f"({4} finished before)" in cpl("--resume", *more).out


def test_a_torn_record_costs_the_torn_lines_only(cpl: Any, model: Darker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cpl().status == 0
    path = out / RECORD_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] + b"\n[" + b"\xff\n\n" + b'["list"]\n{"output": 3}\n' + whole[-30:-20])
    before = files(out)
    assert "restored 1 of 4 images" in cpl("--resume").out
    changed = [name for name, file in files(out).items() if before[name] != file]
    assert changed == ["sub/d.png"]
    assert "(4 finished before)" in cpl("--resume").out  # the line after the torn one can be read


def test_a_line_after_a_torn_one_can_be_read(tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_bytes(b'\n{"output": "torn by a full di')
    (tmp_path / "a.png").write_bytes(b"data")
    made = Record(tmp_path, "model", {"dtype": "fp32"})
    made.finish(tmp_path / "a.png", "00", b"data")
    made.close()
    again = Record(tmp_path, "model", {"dtype": "fp32"}, resume=True)
    assert again.is_finished(tmp_path / "a.png", "00")
    assert not again.is_finished(tmp_path / "a.png", "01")


def test_stopped_between_an_output_and_its_line(
    cpl: Any, model: Darker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output stands and is not known to be finished: ours all the same, and so done again without a question."""
    out, finish = tmp_path / "out", Record.finish

    def stopped(self: Record, target: Path, *rest: Any) -> None:
        if target.name == "b.tif":
            raise KeyboardInterrupt
        finish(self, target, *rest)

    monkeypatch.setattr(Record, "finish", stopped)
    result = cpl()
    said = f"interrupted: restored 1 of 4 images to {out} (3 not tried); --resume goes on from here\n"
    assert (result.status, result.err) == (130, said)
    assert names(out) == ["a.png", "b.tif"]
    before = files(out)
    monkeypatch.setattr(Record, "finish", finish)
    assert cpl("--resume").out == f"restored 3 of 4 images to {out} (1 finished before)\n"
    assert files(out)["a.png"] == before["a.png"]
    assert files(out)["b.tif"] != before["b.tif"]


def test_a_file_that_is_not_ours_is_not_replaced(cpl: Any, model: Darker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = photo(out / "sub/c.png", 5).read_bytes()
    one_error(cpl("--resume"), out / "sub/c.png", "not from an earlier run", "--overwrite")
    assert contents(out) == {"sub/c.png": own}
    assert cpl("--resume", "--overwrite").status == 0
    assert (out / "sub/c.png").read_bytes() != own


def test_one_file_as_output_has_no_record(run: Any, model: Darker, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png")
    arguments = ("restore", source, "--checkpoint", "x", "--output", tmp_path / "out.png")
    one_error(run(*arguments, "--resume"), tmp_path / "out.png", "leave --resume out")
    assert run(*arguments).status == 0
    assert sorted(os.listdir(tmp_path)) == ["in.png", "out.png"]


def test_a_record_that_cannot_be_written_stops_nothing(cpl: Any, model: Darker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / RECORD_NAME).mkdir(parents=True)
    result = cpl("--overwrite")
    assert result.status == 0
    assert result.err.count("\n") == 1
    assert result.err.startswith(f"warning: {out / RECORD_NAME}: Is a directory; the run goes on")
    assert len(names(out)) == 4
    one_error(cpl("--resume"), RECORD_NAME)


def test_two_runs_at_once_into_one_folder(
    cpl: Any, model: Darker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the one comes between two of the other; both are whole."""
    out = tmp_path / "out"
    out.mkdir()
    other = Record(out, "another model", {})
    begin = Record.begin

    def between(self: Record, target: Path) -> None:
        if self is not other:
            other.begin(target)
            other.finish(out / f"other/{target.name}", "00", b"data")
        begin(self, target)

    monkeypatch.setattr(Record, "begin", between)
    assert cpl().status == 0
    other.begin(out / "a.png")  # and did not come to write it
    other.close()
    lines = [json.loads(line) for line in (out / RECORD_NAME).read_bytes().split(b"\n") if line]
    assert len(lines) == 17
    assert "(4 finished before)" in cpl("--resume").out


def test_the_digest_of_a_model_is_of_all_that_it_computes_with() -> None:
    import cpl as package

    torch.manual_seed(0)
    one = package.create_model("cplir-tiny")
    torch.manual_seed(0)
    assert record.model_digest(one) == record.model_digest(package.create_model("cplir-tiny"))
    digests = {record.model_digest(one), record.model_digest(nn.Identity())}
    digests.add(record.model_digest(nn.Linear(2, 3).requires_grad_(False)))
    with torch.no_grad():
        next(one.parameters()).flatten()[0] += 1e-3
    digests.add(record.model_digest(one))
    digests.add(record.model_digest(one.to(torch.bfloat16)))
    assert len(digests) == 5
    sparser = package.create_model("cplir-tiny", top_k=2)
    sparser.load_state_dict(one.float().state_dict())
    assert record.model_digest(sparser) != record.model_digest(one)  # a setting that no weight shows


def test_killed_in_the_middle_and_resumed(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """SIGKILL, once as users run it, while the fourth file is half on disk."""
    for number in range(1, 13):
        photo(tmp_path / f"in/{number}.png", number, size=(16, 16))
    out, hanging = tmp_path / "out", tmp_path / "hanging"
    script = f"""
import os, sys, time
real, calls = os.fsync, []
def fsync(handle):
    calls.append(handle)
    if len(calls) == 4:
        os.truncate(handle, 100)
        open({str(hanging)!r}, "w").close()
        time.sleep(600)
    real(handle)
os.fsync = fsync
from cpl.cli import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["restore", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--output"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not hanging.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = [name for name in names(out) if name.startswith(".4.png.")]
    assert len(left) == 1
    assert names(out) == sorted([*left, "1.png", "2.png", "3.png"])
    before = files(out)
    result = run(*arguments, out, "--resume")
    assert result == (0, f"restored 9 of 12 images to {out} (3 finished before)\n", "")
    after = files(out)
    assert [after[f"{n}.png"] for n in (1, 2, 3)] == [before[f"{n}.png"] for n in (1, 2, 3)]
    assert run(*arguments, tmp_path / "undisturbed").status == 0
    assert contents(out) == contents(tmp_path / "undisturbed")  # and so no temporary file either
    assert len(contents(out)) == 12
