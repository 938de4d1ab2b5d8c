"""One thread that restores, one photo after another."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker:
    """Runs what it is given in a thread of its own, in order.

    The thread is a daemon: a restoration, which may take minutes, does not hold up the end of the process.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="restoring", daemon=True)
        self.busy = False
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """A future of what ``job`` returns or raises. It sees the context variables of the caller."""
        future: Future[Any] = Future()
        context = contextvars.copy_context()
        self._jobs.put((future, lambda: context.run(job)))
        return future

    def _run(self) -> None:
        while True:
            future, job = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue  # the visitor has left
            self.busy = True
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                self.busy = False
