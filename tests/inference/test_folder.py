"""Many files through one network: what overlaps, in which order, how much at a time, and what an end leaves."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need the extra [restore]")
pytest.importorskip("imagecodecs", reason="images need the extra [restore]")
from PIL import Image

from cpl.errors import CplError
from cpl.images import ImageWarning
from cpl.inference import folder
from cpl.inference.folder import pipeline

LONG = 20.0  # seconds after which a wait for another thread has failed


def frames(path: Path, count: int) -> list[folder.Job]:
    (path / "in").mkdir()
    for number in range(1, count + 1):
        pixels = np.full((4, 5, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(path / f"in/frame_{number}.png")
    return folder.plan([path / "in"], path / "out")


def same(image: np.ndarray, name: str) -> np.ndarray:
    return image


def test_frames_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    jobs = frames(tmp_path, 11)
    numbers = [f"frame_{n}.png" for n in range(1, 12)]
    assert [job.name for job in jobs] == numbers
    worked: list[str] = []
    done: list[str] = []

    def process(image: np.ndarray, name: str) -> np.ndarray:
        worked.append(name)
        return image

    report = folder.run(jobs, process, on_done=lambda job: done.append(job.name))
    assert worked == done == [path.name for path in report.written] == numbers
    pattern = folder.find_images([tmp_path / "in/frame_*.png"])  # one that the shell left alone
    assert [relative.name for _, relative in pattern] == numbers


def test_natural_order_compares_any_two_names() -> None:
    names = [
        "a",
        "a1",
        "a01",
        "a1b",
        "a1b2",
        "1",
        "10",
        "2a",
        "",
        "b",
        "A",
        "a-1",
        "½",
        "²3",
        "٣",
        "1.5",
        "1.10",
    ]
    for one, other in itertools.product(names, names):
        keys = folder.natural_order(one), folder.natural_order(other)
        assert (keys[0] == keys[1]) == (one == other)
        assert (keys[0] < keys[1]) or (keys[1] < keys[0]) or one == other
    assert sorted(["a10", "a9", "a", "a010"], key=folder.natural_order) == ["a", "a9", "a010", "a10"]


def test_reading_and_writing_go_on_beside_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage waits for one that a run without overlap would only come to later."""
    read_second, restoring_second = threading.Event(), threading.Event()
    read, encode = pipeline.read_bytes, pipeline.encode_image

    def reading(path: Path) -> bytes:
        data = read(path)
        if path.name == "frame_2.png":
            read_second.set()
        return data

    def process(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_1.png":
            assert read_second.wait(LONG), "the second file is not read while the first is restored"
        else:
            restoring_second.set()
        return image

    def encoding(path: Path, *rest: object) -> bytes:
        if path.name == "frame_1.png":
            assert restoring_second.wait(LONG), "the first file is not written while the second is restored"
        return encode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "read_bytes", reading)
    monkeypatch.setattr(pipeline, "encode_image", encoding)
    assert len(folder.run(frames(tmp_path, 2), process).written) == 2


def test_no_more_than_so_many_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, read, most, read_bytes = frames(tmp_path, 12), [0], [0], pipeline.read_bytes

    def reading(path: Path) -> bytes:
        read[0] += 1
        most[0] = max(most[0], read[0] - sum(job.target.exists() for job in jobs))
        return read_bytes(path)

    def slow(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_1.png":
            deadline = time.monotonic() + LONG
            while read[0] < folder.IN_FLIGHT and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)  # in which a reader without bounds reads all twelve
        return image

    monkeypatch.setattr(pipeline, "read_bytes", reading)
    assert len(folder.run(jobs, slow).written) == 12
    assert most == [folder.IN_FLIGHT]


def test_images_are_let_go_as_soon_as_nobody_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input's pixels before its output is written, an output's before the next one comes."""
    encode, written = pipeline.encode_image, threading.Event()
    inputs: dict[str, weakref.ref[np.ndarray]] = {}
    outputs: dict[str, weakref.ref[np.ndarray]] = {}

    def process(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_2.png":
            assert written.wait(LONG)
            deadline = time.monotonic() + 5
            while outputs["frame_1.png"]() is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert outputs["frame_1.png"]() is None
        result = image.copy()
        inputs[name], outputs[name] = weakref.ref(image), weakref.ref(result)
        return result

    def encoding(path: Path, *rest: object) -> bytes:
        assert inputs[path.name]() is None
        return encode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "encode_image", encoding)
    report = folder.run(frames(tmp_path, 2), process, on_done=lambda job: written.set())
    assert len(report.written) == 2


def test_reports_keep_the_order_whatever_fails_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = frames(tmp_path, 6)
    jobs[1].source.write_bytes(b"no picture")  # fails in the reader, while the first is still in work
    Image.new("P", (3, 3)).save(jobs[3].source)  # has something to say before it ends
    encode, events = pipeline.encode_image, []

    def process(image: np.ndarray, name: str) -> np.ndarray:
        time.sleep(0.02)
        if name == "frame_3.png":
            raise ValueError("not this one")
        return image

    def encoding(path: Path, *rest: object) -> bytes:
        if path.name == "frame_5.png":
            raise OSError(27, "File too large")
        return encode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "encode_image", encoding)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: events.append(("warning", str(message)))  # type: ignore[assignment]
        report = folder.run(
            jobs,
            process,
            on_error=lambda path, error: events.append(("error", path.name)),
            on_done=lambda job: events.append(("done", job.name)),
        )
    palette = f"{jobs[3].source} is a palette image and is written as RGB, since restoring makes new colours"
    assert events == [
        ("done", "frame_1.png"),
        ("error", "frame_2.png"),
        ("done", "frame_2.png"),
        ("error", "frame_3.png"),
        ("done", "frame_3.png"),
        ("warning", palette),
        ("done", "frame_4.png"),
        ("error", "frame_5.png"),
        ("done", "frame_5.png"),
        ("done", "frame_6.png"),
    ]
    assert [path.name for path, _ in report.failed] == ["frame_2.png", "frame_3.png", "frame_5.png"]
    assert [path.name for path in report.written] == ["frame_1.png", "frame_4.png", "frame_6.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_of_one_image_is_not_that_of_the_outputs(tmp_path: Path, number: int) -> None:
    """Scratch files of a large photo in TMPDIR, say."""
    jobs = frames(tmp_path, 5)

    def process(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_2.png":
            raise OSError(number, os.strerror(number))
        return image

    report = folder.run(jobs, process)
    assert [path.name for path, _ in report.failed] == ["frame_2.png"]
    assert (len(report.written), report.skipped) == (4, 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_of_the_outputs_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    jobs, real, calls = frames(tmp_path, 5), os.fsync, []

    def full_at_the_second(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    report = folder.run(jobs, same)
    assert [path.name for path, _ in report.failed] == ["frame_2.png"]
    assert (len(report.written), report.skipped) == (1, 3)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cpl-")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_end_in_the_middle_writes_what_was_restored(tmp_path: Path, stop: type[BaseException]) -> None:
    """Ctrl-C, and a fault of ours, which is not taken for the image's."""
    jobs = frames(tmp_path, 9)

    def process(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_4.png":
            raise stop
        return image

    with pytest.raises(stop) as caught:
        folder.run(jobs, process)
    assert sorted(os.listdir(tmp_path / "out")) == ["frame_1.png", "frame_2.png", "frame_3.png"]
    assert threads() == []
    if isinstance(caught.value, folder.Interrupted):
        assert [path.name for path in caught.value.report.written] == [
            "frame_1.png",
            "frame_2.png",
            "frame_3.png",
        ]
        assert (caught.value.report.failed, caught.value.report.skipped) == ([], 6)
    else:
        assert stop is RuntimeError


def test_a_second_interrupt_while_the_first_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lose the report, but neither what was restored nor the writer, which nobody else would end."""
    halt, halted = pipeline._Line._halt, []

    def interrupted(self: pipeline._Line) -> None:
        halt(self)
        if not halted:
            halted.append(self)
            raise KeyboardInterrupt

    def process(image: np.ndarray, name: str) -> np.ndarray:
        if name == "frame_3.png":
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr(pipeline._Line, "_halt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.run(frames(tmp_path, 5), process)
    (line,) = halted
    assert not line._writer.daemon  # else the process would end in the middle of a file
    line._writer.join(LONG)
    assert not line._writer.is_alive()
    assert sorted(os.listdir(tmp_path / "out")) == ["frame_1.png", "frame_2.png"]


def test_what_a_callback_raises_reaches_the_caller(tmp_path: Path) -> None:
    """`cpl degrade ... | head`: the reader of the names left."""

    def on_done(job: folder.Job) -> None:
        if job.name == "frame_2.png":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        folder.run(frames(tmp_path, 9), same, on_done=on_done)
    assert {"frame_1.png", "frame_2.png"} <= set(os.listdir(tmp_path / "out"))
    assert "frame_9.png" not in os.listdir(tmp_path / "out")
    assert threads() == []


def test_the_warnings_of_others_are_as_they_were(tmp_path: Path) -> None:
    """The decoders' own are hidden while files are read in another thread; the network's are not."""
    jobs, before = frames(tmp_path, 3), list(warnings.filters)

    def process(image: np.ndarray, name: str) -> np.ndarray:
        warnings.warn("of the network", RuntimeWarning, stacklevel=1)
        return image

    Image.MAX_IMAGE_PIXELS, limit = 15, Image.MAX_IMAGE_PIXELS  # 20 pixels: Pillow warns
    try:
        with pytest.warns(RuntimeWarning, match="of the network") as seen:
            folder.run(jobs, process)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    assert {warning.category for warning in seen} == {RuntimeWarning}
    assert warnings.filters == before
    Image.new("P", (3, 3)).save(jobs[0].source)
    with pytest.warns(ImageWarning, match="palette"):
        folder.run(jobs, same)


def test_shares_are_a_partition_and_each_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [folder.Job(Path(f"{n}.png"), Path(f"out/{n}.png")) for n in range(5)]
    alone = folder.Processes()
    assert (alone.is_main, alone.share(jobs), alone.device("cuda:1"), alone.of) == (True, jobs, "cuda:1", "")
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank + 4))
        processes = folder.Processes()
        shares.append(processes.share(jobs))
        assert processes.device("cpu") == "cpu"
        assert processes.device("cuda") == f"cuda:{rank + 4}"
        assert processes.of == f" (process {rank + 1} of 3)"
        with pytest.raises(CplError, match="cuda:1 for 3 processes.*leave --device out"):
            processes.device("cuda:1")
    assert [[job.source.stem for job in share] for share in shares] == [["0", "3"], ["1", "4"], ["2"]]


@pytest.mark.parametrize("broken", [False, True])
def test_one_process_plans_for_all(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get its plan, or end with its status and leave the words to it."""
    sent: list[list[object]] = []

    def send(box: list[object]) -> None:  # torch's broadcast in process 0, and in the others
        sent.append(list(box))

    def receive(box: list[object]) -> None:
        assert sent, "waits without end"
        box[:] = sent[0]

    def make() -> list[str]:
        if broken:
            raise CplError("already there")
        return ["the plan"]

    def never() -> list[str]:
        raise AssertionError("planned twice")

    broadcast = "cpl.inference.folder.processes.dist.broadcast_object_list"
    monkeypatch.setattr(broadcast, send)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    main = folder.Processes()
    monkeypatch.setenv("RANK", "1")
    other = folder.Processes()
    if broken:
        with pytest.raises(CplError, match="already there"):
            main.agreed(make)
    else:
        assert main.agreed(make) == ["the plan"]
    monkeypatch.setattr(broadcast, receive)
    if broken:
        with pytest.raises(SystemExit) as stop:
            other.agreed(never)
        assert stop.value.code == 2
    else:
        assert other.agreed(never) == ["the plan"]
