"""This tree against another commit, in one run: python -m benchmarks.compare REV [--op OP ...] [--threshold 1.05]

The other commit is checked out and built in a temporary worktree. Each side has a process of its own, with its own
cpl_kernels and this tree's benchmarks, and both take turns, call by call: whatever else the machine does hits them
alike. Compared is the median of the ratios within a round; past the threshold the exit status is 1. The other side
needs no more than the public functions that are measured: what it does not have is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import idle
from benchmarks.gpu.stages import ROOT, end_session, known_ops

# harness imports cpl_kernels. Here it may only be imported once the side is known, in serve().

SECONDS, LEAST_ROUNDS = 3.0, 15  # per case
TURN_SECONDS, MOST_CALLS = 0.02, 200  # quick calls are timed several at a time
SLOWER, NOTHING = 1, 2  # exit statuses
ENVIRONMENT = {
    # A side that waits must not spin on the cores of the side whose turn it is.
    "OMP_WAIT_POLICY": "passive",
    # Memory that was freed is kept. Else every large result is fresh pages from the system, and where one side gets
    # huge pages and the other does not, a commit is several times slower than itself.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


class CompareError(RuntimeError):
    """Nothing can be compared; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """The times of this tree to those of the other in the same round: median and quartiles."""

    ratio: float
    low: float
    high: float
    slower: bool


def verdict(here: Sequence[float], there: Sequence[float], threshold: float) -> Verdict:
    paired = [a / b for a, b in zip(here, there, strict=True)]
    low, ratio, high = statistics.quantiles(paired, n=4)
    return Verdict(ratio, low, high, ratio > threshold)


class Side:
    """One tree's process, which makes the calls that it is told to."""

    def __init__(self, tree: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.compare", "--serve", str(tree)]
        environment = {**os.environ, **ENVIRONMENT}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise CompareError(f"a side's process ended with {self.process.wait()}; its messages stand above")
        return json.loads(answer)

    def close(self) -> None:
        end_session(self.process)


def serve(tree: Path) -> None:
    """A side: ``benchmarks`` is this tree's already, ``cpl_kernels`` is to be that of ``tree``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    sys.path.insert(0, str(tree))
    # An editable install would fill in what that tree's cpl_kernels does not have.
    sys.meta_path[:] = [
        f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")
    ]
    import cpl_kernels

    assert Path(cpl_kernels.__file__).is_relative_to(tree), cpl_kernels.__file__
    call: Callable[[], Any] = lambda: None  # noqa: E731  until the first case
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "op" in request:
            call, answer = prepared(**request)
        else:
            start = time.perf_counter()
            for _ in range(request["calls"]):
                call()
            answer = {"seconds": (time.perf_counter() - start) / request["calls"]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def prepared(op: str, problem: int, dtype: str, passes: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Our implementation of a case, checked against the definition; the seconds of one call, or why there is none."""
    from dataclasses import replace

    import torch

    from benchmarks import harness

    try:
        bench = harness.load(op)
        name, factory = next(iter(bench.implementations.items()))
        only = replace(bench, implementations={name: factory})
        calls, absent = harness.runs(
            only, bench.problems["cpu"][problem], torch.device("cpu"), getattr(torch, dtype)
        )
    except (ImportError, AttributeError, TypeError, NotImplementedError) as error:
        return lambda: None, {"absent": f"{type(error).__name__}: {error}"}
    if absent:
        return lambda: None, {"absent": absent[name]}
    call = calls[name][passes]
    call()
    return call, {"seconds": harness.wall_clock(call)}


def taken_in_turn(
    here: Callable[[], float], there: Callable[[], float], seconds: float
) -> tuple[list[float], list[float]]:
    """Times of both sides, round after round; who is first changes, as the second may find a warmer machine."""
    times: dict[Any, list[float]] = {here: [], there: []}
    order = [here, there]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[here]) < LEAST_ROUNDS:
        for side in order:
            times[side].append(side())
        order.reverse()
    return times[here], times[there]


@contextlib.contextmanager
def checked_out(rev: str) -> Iterator[Path]:
    """``rev`` in a worktree with its core built; it is gone afterwards, whatever happened."""
    commit = _git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
    folder = Path(tempfile.mkdtemp(prefix="cpl-compare-"))
    try:
        _git("worktree", "add", "--quiet", "--detach", str(folder / "tree"), commit)
        _build(folder / "tree")
        yield folder / "tree"
    finally:
        with contextlib.suppress(CompareError):  # it was not added yet
            _git("worktree", "remove", "--force", str(folder / "tree"))
        shutil.rmtree(folder, ignore_errors=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompareError(f"git {' '.join(arguments)}: {done.stderr.strip() or 'no such commit'}")
    return done.stdout.strip()


def _build(tree: Path) -> None:
    """The CPU core, where that commit has one; its messages only if it fails."""
    environment = {**os.environ, "CPL_SKIP_CUDA": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            end_session(process)
        if code != 0:
            said.seek(0)
            raise CompareError(f"building {tree.name} of the other commit failed:\n{said.read()[-4000:]}")


def stale(tree: Path = ROOT) -> str | None:
    """Why this tree's core is not that of its sources, or None."""
    built = [Path(path) for path in glob.glob(str(tree / "cpl_kernels" / "_core*.so"))]
    if not built:
        return "this tree's core is not built: make install"
    sources = [path for path in (tree / "csrc").rglob("*") if path.is_file()]
    newer = max(sources, key=lambda path: path.stat().st_mtime)
    if newer.stat().st_mtime > max(path.stat().st_mtime for path in built):
        return f"{newer.relative_to(tree)} is newer than this tree's core: make install"
    return None


def compare(ops: Sequence[str], rev: str, threshold: float) -> int:
    """Print a line a case; the exit status."""
    with checked_out(rev) as tree, closing(Side(ROOT)) as here, closing(Side(tree)) as there:
        return compare_sides(here, there, list(cases(ops)), rev, threshold)


def cases(ops: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Group and request of every size, dtype and pass."""
    from benchmarks import harness

    for op in ops:
        bench = harness.load(op)
        for index, problem in enumerate(bench.problems["cpu"]):
            for dtype in bench.dtypes["cpu"]:
                for passes in harness.PASSES:
                    request = {"op": op, "problem": index, "dtype": dtype, "passes": passes}
                    yield bench.group(problem, dtype, passes), request


def seconds_of(side: Any, calls: int) -> float:
    return float(side.ask(calls=calls)["seconds"])


def compare_sides(
    here: Any, there: Any, listed: Sequence[tuple[str, dict[str, Any]]], rev: str, threshold: float
) -> int:
    verdicts = []
    for group, request in listed:
        first = [side.ask(**request) for side in (here, there)]
        absent = [f"{where}: {answer['absent']}" for where, answer in zip(("here", rev), first, strict=True)
                  if "absent" in answer]  # fmt: skip
        if absent:
            print(f"{group}: not compared ({'; '.join(absent)})", flush=True)
            continue
        slowest = max(answer["seconds"] for answer in first)
        calls = max(1, min(MOST_CALLS, round(TURN_SECONDS / slowest)))
        ours, theirs = taken_in_turn(
            partial(seconds_of, here, calls), partial(seconds_of, there, calls), SECONDS
        )
        found = verdict(ours, theirs, threshold)
        verdicts.append(found)
        print(
            f"{group}: {found.ratio:.3f} of {rev} (quartiles {found.low:.3f} to {found.high:.3f}; "
            f"{statistics.median(ours) * 1e3:.3f} ms against {statistics.median(theirs) * 1e3:.3f} ms, "
            f"{len(ours)} rounds){f', past {threshold}: SLOWER' if found.slower else ''}",
            flush=True,
        )
    if not verdicts:
        print("nothing could be compared")
        return NOTHING
    slower = sum(found.slower for found in verdicts)
    print(f"{slower} of {len(verdicts)} slower than {threshold} of {rev}")
    return SLOWER if slower else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rev", metavar="REV", help="a commit, by any name that git knows")
    parser.add_argument("--op", nargs="+", default=[], metavar="OP", help=f"of {', '.join(known_ops())}")
    parser.add_argument("--threshold", type=float, default=1.05, help="of the median ratio (default: 1.05)")
    args = parser.parse_args(argv)
    unknown = [op for op in args.op if op not in known_ops()]
    if unknown:
        parser.error(f"--op: {', '.join(unknown)}: no such benchmark; there are {', '.join(known_ops())}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed then too
    try:
        if trouble := stale():
            raise CompareError(trouble)
        idle.check()
        return compare(args.op or known_ops(), args.rev, args.threshold)
    except (CompareError, idle.BusyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        sys.exit(main())
