"""Runs one stage after another, each within its own time, and keeps what is known after every one of them.

A stage is a command. What it prints goes to ``log.txt`` as it comes, and what is kept of it is read from there: also
of a stage that crashed or was killed, up to where it came.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import page
from benchmarks.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
DONE, FAILED, OVERRUN, LEFT_OUT = "done", "failed", "overran its time", "left out"
TAIL = 2000  # characters of the output of a stage that did not end well


def json_lines(text: str) -> list[dict[str, Any]]:
    """The objects among the lines of ``text``; what libraries print between them is passed over."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:  # half a line, of a stage that was killed
                continue
    return found


def known_ops() -> tuple[str, ...]:
    """harness.OPS, without the torch and cpl_kernels that it imports."""
    return OPS


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        seconds: after which it is killed; None: whatever is left of the whole.
        command: run from the repository's root; ``{seconds}`` in it becomes what it has.
        read: its output -> what is kept of it.
        left_out: why it does not run here, if it does not.
    """

    name: str
    seconds: float | None = None
    command: Sequence[str] = ()
    read: Callable[[str], Mapping[str, Any]] = lambda text: {}
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""


def run_all(stages: Sequence[Stage], out: Path, seconds: float, facts: Mapping[str, Any]) -> bool:
    """Run them within ``seconds``; True when all that ran ended well. result.json and page.md always are of now."""
    end = time.monotonic() + seconds
    result: dict[str, Any] = {**facts, "stages": {}}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("w+b") as log:
        for stage in stages:
            left = end - time.monotonic()
            result["stages"][stage.name] = run(stage, min(left, stage.seconds or left), log)
            write(out / "result.json", json.dumps(result, indent=1) + "\n")
            write(out / "page.md", page.markdown(result))
            print(f"{stage.name}: {page.outcome(result['stages'][stage.name])}", flush=True)
    return all(kept["state"] in (DONE, LEFT_OUT) for kept in result["stages"].values())


def run(stage: Stage, seconds: float, log: Any) -> dict[str, Any]:
    """State, seconds taken and what is kept of one stage; whatever it started is gone afterwards."""
    if stage.left_out:
        return {"state": LEFT_OUT, "why": stage.left_out}
    if seconds < 1:
        return {"state": OVERRUN, "why": "the stages before it took all the time"}
    log.write(f"==== {stage.name}\n".encode())
    log.flush()
    begin, started = log.tell(), time.monotonic()
    why = ""
    try:
        process = subprocess.Popen(
            [part.replace("{seconds}", f"{seconds:.1f}") for part in stage.command],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
            start_new_session=True,  # so that all that it started can be found and ended
        )  # fmt: skip
    except OSError as error:
        return {"state": FAILED, "why": str(error)}
    try:
        code = process.wait(timeout=seconds)
        state = DONE if code == 0 else FAILED
        why = "" if code == 0 else f"exit status {code}"
    except subprocess.TimeoutExpired:
        state, why = OVERRUN, f"killed after {seconds:.0f} s"
    finally:
        end_session(process)
    log.seek(begin)
    text = log.read().decode(errors="replace")
    log.seek(0, os.SEEK_END)
    kept: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    if why:
        kept |= {"why": why, "tail": text[-TAIL:]}
    try:
        return {**kept, **stage.read(text)}
    except Exception as error:  # a page without one stage's figures is better than none
        unread = f"its output could not be read: {error!r}"
        return {**kept, "state": FAILED, "why": unread, "tail": text[-TAIL:]} if state == DONE else kept


def end_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started with start_new_session, and all that is left of what it started.

    Its group is not enough: ninja gives every compiler one of its own.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            state, _, _, session = status.read_text().rsplit(")", 1)[1].split()[:4]
            if int(session) == process.pid and state != "Z":
                os.kill(int(status.parent.name), signal.SIGKILL)
    process.wait()


def write(path: Path, text: str) -> None:
    """Whole or not at all: who looks while a later stage runs finds the state after the one before."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)
