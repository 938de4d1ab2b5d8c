"""Reading, restoring and writing side by side, with a few images in memory at a time.

One thread reads ahead and one writes behind; the network runs in the calling thread, where Ctrl-C
arrives. Whatever becomes of an image passes through all three in turn, so that outputs are finished
and reported in the order of the jobs. A slot is taken before a file is read and given back when its
output stands: that, and not the length of a queue, bounds the memory.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from cpl.errors import CplError
from cpl.files import atomic_write, remove_leftovers
from cpl.images import (
    ImageFile,
    ImageWarning,
    decode_image,
    encode_image,
    quiet_decoders,
    read_bytes,
)
from cpl.inference.folder.jobs import Job
from cpl.inference.folder.record import Record, sha256

IN_FLIGHT = 3  # one being read, one being restored, one being written

# What can be wrong with one image, and leaves the others alone.
_OF_ONE_IMAGE = (CplError, ValueError, OSError, MemoryError)
# Errors of a write after which the next file would fail in the same way.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# How long an interrupted run waits for the reader, which leaves nothing behind; the writer is always waited for.
_READER_PATIENCE = 1.0


@dataclass
class Report:
    """What became of the jobs."""

    written: list[Path] = field(default_factory=list)  # targets
    failed: list[tuple[Path, Exception]] = field(default_factory=list)  # sources, and why
    finished: list[Path] = field(default_factory=list)  # targets that an earlier run had finished
    skipped: int = 0  # not tried: the run was interrupted, or an error was one that every file would meet


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run`. ``report`` says what was done until then; nothing half-written is left."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report


def run(
    jobs: Sequence[Job],
    process: Callable[[np.ndarray, str], np.ndarray],
    on_error: Callable[[Path, Exception], None] | None = None,
    on_done: Callable[[Job], None] | None = None,
    *,
    record: Record | None = None,
) -> Report:
    """Read, process and write every job; a file that fails is noted and the rest go on.

    At most `IN_FLIGHT` images are in memory at a time. Temporary files that a killed run left of these
    outputs are deleted first.

    Args:
        process: (float32 [H, W, 3] in [0, 1], the job's name) -> the same shape. It runs in this thread.
        on_error, on_done: called as each job fails, and as each job ends either way, in the order of
            the jobs, from the thread that writes.
        record: where to note what made each output; what it knows to be finished is left alone.

    Raises:
        OSError: an output folder cannot be made or written to.
        Interrupted: Ctrl-C; images that were restored by then are still written, and the report is with it.
    """
    for folder in {job.target.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
        _check_writable(folder)
    remove_leftovers(job.target for job in jobs)
    line = _Line(jobs, process, on_error, on_done, record)
    try:
        with quiet_decoders():
            try:
                line.work()
            except KeyboardInterrupt:
                line.stop()
                raise Interrupted(line.report) from None
            finally:
                line.stop()
    finally:
        if record is not None:
            record.close()
    return line.report


@dataclass
class _Item:
    """A job on its way: what the stage before has made of it, or the error that it met."""

    job: Job
    sha256: str = ""
    finished: bool = False
    file: ImageFile | None = None
    losses: Sequence[str] = ()
    restored: np.ndarray | None = None
    error: Exception | None = None


class _Line:
    def __init__(
        self,
        jobs: Sequence[Job],
        process: Callable[[np.ndarray, str], np.ndarray],
        on_error: Callable[[Path, Exception], None] | None,
        on_done: Callable[[Job], None] | None,
        record: Record | None,
    ) -> None:
        self.report = Report()
        self._jobs, self._process, self._on_error, self._on_done = jobs, process, on_error, on_done
        self._record = record
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._read: SimpleQueue[_Item | None] = SimpleQueue()
        self._restored: SimpleQueue[_Item | None] = SimpleQueue()
        self._stopped = threading.Event()  # nothing new is begun
        self._given_up = False  # and nothing more is written: the writer's own
        self._failure: BaseException | None = None  # a fault of ours, or of a callback's
        self._reader = threading.Thread(target=self._read_all, name="cpl-reader", daemon=True)
        # Not a daemon: even a second Ctrl-C lets it end the file that it is writing.
        self._writer = threading.Thread(target=self._write_all, name="cpl-writer")

    def work(self) -> None:
        """Every job, to its end; raises what is no matter of one image."""
        self._writer.start()
        self._reader.start()
        while (item := self._read.get()) is not None and not self._stopped.is_set():
            if item.file is not None:
                try:
                    item.restored = self._process(item.file.rgb, item.job.name)
                except _OF_ONE_IMAGE as error:
                    item.error = error
                # Only the shape is asked for from here on: the input's pixels need not wait for the disk.
                hollow = np.broadcast_to(np.float32(0), item.file.rgb.shape)
                item.file = dataclasses.replace(item.file, rgb=hollow)
            self._restored.put(item)
        self.stop()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin nothing new, let the writer end what was restored, and count what was not tried."""
        try:
            self._halt()
            if self._reader.ident is not None:
                self._reader.join(_READER_PATIENCE)
        finally:  # also at a second Ctrl-C: the writer waits for this, and the process for the writer
            self._restored.put(None)
        if self._writer.ident is not None:
            self._writer.join()
        report = self.report
        report.skipped = len(self._jobs) - len(report.written) - len(report.failed) - len(report.finished)

    def _halt(self) -> None:
        self._stopped.set()
        self._slots.release()  # the reader may be waiting for one

    def _read_all(self) -> None:
        try:
            for job in self._jobs:
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                self._read.put(self._read_one(job))
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._read.put(None)

    def _read_one(self, job: Job) -> _Item:
        item = _Item(job)
        try:
            data = read_bytes(job.source)
            item.sha256 = sha256(data)
            if self._record is not None:
                item.finished = self._record.is_finished(job.target, item.sha256)
            if not item.finished:
                item.file, item.losses = decode_image(data, job.source)
        except _OF_ONE_IMAGE as error:
            item.error = error
        return item

    def _write_all(self) -> None:
        while (item := self._restored.get()) is not None:
            try:
                if not self._given_up:
                    self._settle(item)
            except BaseException as error:
                self._failure, self._given_up = error, True
                self._halt()
            finally:
                item.file = item.restored = None  # who still holds the item holds no image
                self._slots.release()

    def _settle(self, item: _Item) -> None:
        for loss in item.losses:
            warnings.warn(loss, ImageWarning, stacklevel=2)
        hopeless = False
        if item.restored is not None and item.error is None:
            try:
                self._write(item, item.restored)
            except _OF_ONE_IMAGE as error:
                item.error = error
                # Of the outputs' disk only: another one, such as TMPDIR's, may be too full for this image alone.
                hopeless = isinstance(error, OSError) and error.errno in _HOPELESS
        if item.error is not None:
            self.report.failed.append((item.job.source, item.error))
            if hopeless:
                self._given_up = True
                self._halt()
            if self._on_error is not None:
                self._on_error(item.job.source, item.error)
        else:
            (self.report.finished if item.finished else self.report.written).append(item.job.target)
        if self._on_done is not None:
            self._on_done(item.job)

    def _write(self, item: _Item, restored: np.ndarray) -> None:
        target = item.job.target
        data = encode_image(target, restored, item.file)
        if self._record is not None:
            self._record.begin(target)
        with atomic_write(target) as file:
            file.write(data)
        if self._record is not None:
            self._record.finish(target, item.sha256, data)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES,
            "this folder cannot be written to; choose another, or change its rights",
            str(folder),
        )
